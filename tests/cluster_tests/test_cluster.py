"""Faults of a cluster, with real nodes on this machine: whatever dies, the study goes on and the books are right."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, absent
from real_search import Driver, replayed

from scripts.chaos.cluster import Cluster
from scripts.chaos.rig import is_worker, wait_until
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord

# the first test's share has the whole story in it; a minute where nothing else runs
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.usefixtures("only_cluster")]
LIMIT_S = 200
NODE_START_S = 60
"""Seconds that a trial lasts in which a node has to join; on a busy machine a node starts in 40."""
FAST_NEWS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
"""A node that is cut off counts as dead after 15 s instead of 65."""


def trials(storage: Path) -> list[TrialRecord]:
    return Ledger(f"sqlite:///{storage}/small/study.db", "small").trials()


def start(storage: Path, cluster: Cluster, count: int, *arguments: str, epoch_s: float = 1.0) -> Driver:
    """Start a search whose trials are computed: they last as long as the nodes need, on a machine of any speed."""
    own = ["--trials", str(count), "--ray-address", cluster.address, "--set", "train.epochs=12", *arguments]
    return Driver(storage, cluster.environment, *own, command=partial(replayed, epoch_s=epoch_s))


@dataclass(frozen=True)
class Link:
    """A network of two machines: this one at .1, and one in a network namespace of its own at .2."""

    name: str
    here: str
    there: str

    def turn(self, state: str) -> None:
        """Cut the link ("down"), or mend it ("up")."""
        subprocess.run(["ip", "link", "set", f"{self.name}a", state], check=True)


@pytest.fixture(scope="module")
def link() -> Iterator[Link | None]:
    """The network; None where this user may not make one."""
    number = os.getpid() % 16384
    name, net = f"fg{number}", f"10.253.{number // 64}.{number % 64 * 4}"
    link = Link(name, re.sub(r"\d+$", str(number % 64 * 4 + 1), net), re.sub(r"\d+$", str(number % 64 * 4 + 2), net))
    inside = f"ip -n {name}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b",
        f"ip link set {name}b netns {name}",
        f"ip addr add {link.here}/30 dev {name}a",
        f"ip link set {name}a up",
        f"{inside} addr add {link.there}/30 dev {name}b",
        f"{inside} link set {name}b up",
        f"{inside} link set lo up",
    ]
    try:
        done = [subprocess.run(command.split(), capture_output=True).returncode for command in commands]
    except FileNotFoundError:
        done = [1]
    yield None if any(done) else link
    for command in (f"ip link del {name}a", f"ip netns del {name}"):
        subprocess.run(command.split(), capture_output=True, check=False)


@pytest.fixture(scope="module")
def make_cluster(environment: dict[str, str]) -> Iterator[Callable[..., Cluster]]:
    """Start clusters; every process of theirs is ended at the end of the module."""
    made: list[Cluster] = []

    def make(workers: int, host: str | None = None, **variables: str) -> Cluster:
        made.append(Cluster(environment | {"OMP_NUM_THREADS": "1"} | variables, workers, host))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture(scope="module")
def second(make_cluster) -> Cluster:
    """A cluster of one worker."""
    return make_cluster(1)


@dataclass
class Story:
    """A study that lost a node, gained one, lost head and driver, and went on elsewhere."""

    storage: Path
    first: Driver
    noticed_s: float
    """From the death of a node to the line that tells it."""
    moved: int
    """The trial that ran on it."""
    held: list[TrialRecord]
    """What the ledger held when head and driver died."""
    again: Driver


@pytest.fixture(scope="module")
def story(make_cluster, second: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    storage = tmp_path_factory.mktemp("story") / "runs"
    cluster = make_cluster(1)
    driver = start(storage, cluster, 60, epoch_s=NODE_START_S / 12)
    driver.wait_for(r"trial \d+  started", LIMIT_S)
    cluster.add_worker().wait()
    driver.wait_for(r"has joined[\s\S]*trial \d+  epoch 2/[\s\S]*trial \d+  epoch 2/", LIMIT_S)
    cluster.nodes[1].kill_raylet()
    began = time.monotonic()
    driver.wait_for(r"is lost", LIMIT_S)
    noticed_s = time.monotonic() - began
    moved = int(driver.wait_for(r"trial (\d+)  continued \(attempt 2\)", LIMIT_S)[1])
    driver.wait_for(rf"continued[\s\S]*trial {moved:03d}  epoch ", LIMIT_S)
    cluster.head.kill()
    driver.kill()
    held = trials(storage)
    again = start(storage, second, len(held), epoch_s=0.1)
    assert again.finish(LIMIT_S) == 0, again.output
    return Story(storage, driver, noticed_s, moved, held, again)


def test_node_that_joins_late_is_used(story: Story):
    before, after = re.split(r"has joined", story.first.output, maxsplit=1)
    assert "trial 001  started" not in before
    assert "trial 001  started" in after


def test_trial_of_a_killed_node_moves_and_counts_no_failure(story: Story):
    moved = trials(story.storage)[story.moved]
    assert (moved.state, moved.failures) == (State.COMPLETE, 0)
    # Ray tells the trial's end within 5 s; the rest is a busy machine.
    assert story.noticed_s < 30


def test_new_cluster_with_the_same_storage_continues_where_head_and_driver_died(story: Story):
    done = trials(story.storage)
    assert len(done) == len(story.held)
    for before, after in zip(story.held, done, strict=True):
        assert after.state is State.COMPLETE
        assert [e.to_json() for e in after.epochs[: len(before.epochs)]] == [e.to_json() for e in before.epochs]
    assert audit(story.storage, "small") == []


def test_wrong_token_is_told_in_one_line(second: Cluster, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    own = {"RAY_AUTH_TOKEN_PATH": str(token)}
    driver = Driver(tmp_path / "runs", second.environment | own, "--ray-address", second.address)
    assert driver.finish() == 2
    assert driver.output.startswith(f"error: --ray-address: the cluster at {second.address} refuses the token")
    assert not (tmp_path / "runs").exists()
    assert driver.output.count("\n") == 1


def test_nodes_that_differ_are_named_and_nothing_starts(second: Cluster, tmp_path: Path):
    old, storage = tmp_path / "old", tmp_path / "new" / "runs"
    (old / "fgseg").mkdir(parents=True)
    for path in (ROOT / "fgseg").iterdir():
        (old / "fgseg" / path.name).symlink_to(path)
    (old / "fgseg" / "__init__.py").unlink()
    (old / "fgseg" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    storage.mkdir(parents=True)
    elsewhere = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {storage} && exec "$@"', "sh"]
    blind = subprocess.run([*elsewhere, "true"], capture_output=True).returncode == 0
    nodes = [second.add_worker(PYTHONPATH=f"{old}:{ROOT}")]
    nodes += [second.add_worker(before=elsewhere)] if blind else []
    try:
        for node in nodes:
            node.wait()
        driver = start(storage, second, 1)
        assert driver.finish(LIMIT_S) == 2, driver.output
        assert "has fgsearch 0.0.1, here it is" in driver.output
        assert not blind or f"cannot read the driver's files in the storage {storage}" in driver.output
        assert list(storage.iterdir()) == []
    finally:
        for node in nodes:
            node.kill()


def test_worker_that_the_network_cuts_off_is_superseded_and_writes_no_more(
    make_cluster, link: Link | None, tmp_path: Path
):
    if link is None:
        absent("only root may make a network of its own")
    storage = tmp_path / "cut" / "runs"
    cluster = make_cluster(0, link.here, **FAST_NEWS)
    far = cluster.add_worker("--host", link.there, before=["ip", "netns", "exec", link.name])
    far.wait()
    driver = start(storage, cluster, 1, "--set", "train.epochs=40", epoch_s=0.5)
    driver.wait_for(r"trial 000  epoch 2/", LIMIT_S)
    (worker,) = [process for process in far.processes() if process.is_running() and is_worker(process)]
    worker.send_signal(signal.SIGSTOP)
    cluster.add_worker().wait()  # only now, so that the trial began on the far one
    link.turn("down")
    driver.wait_for(r"trial 000  continued \(attempt 2\)[\s\S]*trial 000  epoch ", LIMIT_S)
    folder = storage / "small" / "trials" / "0"
    before = {path.name for path in folder.glob("*-000001-*")}
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: is_idle(worker), 30)
    assert {path.name for path in folder.glob("*-000001-*")} <= before
    link.turn("up")
    assert driver.finish(LIMIT_S) == 0, driver.output
    (trial,) = trials(storage)
    assert (trial.state, trial.attempt, trial.failures) == (State.COMPLETE, 2, 0)
    assert audit(storage, "small") == []


def is_idle(process: psutil.Process) -> bool:
    """Whether a process has ended, or does nothing for two seconds."""
    try:
        before = process.cpu_times().user
        time.sleep(2)
        return process.cpu_times().user == before
    except psutil.NoSuchProcess:
        return True
