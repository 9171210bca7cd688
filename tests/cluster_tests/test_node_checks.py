"""What is asked of every node before the first trial, and what an address that is no cluster of ours gives."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fgseg.config.errors import ConfigError
from fgseg.storage.store import LocalStore
from search.cluster.node_checks import check_written, connect, connection_error, describe_differences
from search.cluster.node_probe import NodeReport, NodeRequirements, check_storage, explain, probe
from search.study.child_process import ChildProcess
from search.study.config import SearchConfig
from search.study.resources import Node, share_cluster

HERE = NodeReport({"fgsearch": "1.0", "torch": "2.14"}, [80_000], "abc")


def node(number: int, cpus: float = 4, gpus: float = 1) -> Node:
    return Node(f"{number:08d}ff", f"10.0.0.{number}", 7000, f"gpu-{number}", cpus, gpus)


def test_nodes_that_are_what_the_driver_is_pass():
    assert (
        describe_differences(HERE, {node(1): HERE, node(2): NodeReport(HERE.versions, [80_000, 79_000], "abc")}) == []
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (NodeReport({"fgsearch": "0.9", "torch": "2.14"}, [80_000], "abc"), "has fgsearch 0.9, here it is 1.0"),
        (NodeReport(HERE.versions, [80_000], "xyz"), "reads other data (fingerprint xyz, here it is abc)"),
        (NodeReport(HERE.versions, [40_000], "abc"), "has a GPU of 40000 MiB, others have 80000 MiB"),
        (NodeReport(HERE.versions, [80_000], "", ["data.root: no folder /data"]), "data.root: no folder /data"),
    ],
)
def test_node_that_differs_is_named_in_one_line(told: NodeReport, expected: str):
    assert describe_differences(HERE, {node(1): HERE, node(2): told}) == [f"node 10.0.0.2 (gpu-2, 00000002) {expected}"]


def test_node_without_our_package_is_told_as_such():
    error = RuntimeError("The task failed\nModuleNotFoundError: No module named 'search'")
    assert explain(error) == "fgsearch is not installed as it is here (ModuleNotFoundError: No module named 'search')"


def test_node_that_does_not_see_the_storage_says_so(tmp_path: Path):
    told = NodeReport()
    check_storage(NodeRequirements({}, (), str(tmp_path / "another"), "blob", "text"), told)
    assert told.faults == [f"cannot read the driver's files in the storage {tmp_path / 'another'}; it must be shared"]


def test_node_that_writes_to_a_place_of_its_own_is_found_out(tmp_path: Path):
    told = NodeReport()
    check_written(LocalStore(tmp_path), "blob-1", told)
    assert told.faults == ["writes to another storage than the driver reads; it must be shared"]


def test_trial_that_fits_on_no_single_node_is_refused_although_the_sum_would_carry_it():
    with pytest.raises(ConfigError, match=r"no trial fits, the largest of 2 nodes has 4 cores, and 1 GPUs"):
        share_cluster(SearchConfig(cpus_per_trial=6), [node(1), node(2)])


def test_trials_of_a_cluster_have_threads_by_their_cores_and_may_be_as_many_as_the_budget():
    given = share_cluster(SearchConfig(cpus_per_trial=2, trials=30), [node(1), node(2)])
    assert (given.cpus, given.gpus, given.threads, given.concurrent) == (2, 1, 2, 30)


def test_other_versions_are_told_with_both():
    said = "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
    said += "This process was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    assert "has other versions than this process (Ray: 2.59.0, then Python: 3.11.7" in connection_error("h:1", said)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []
        threading.Thread(target=lambda: taken.append(server.accept()[0]), daemon=True).start()
        yield server.getsockname()[1]
        for connection in taken:
            connection.close()


@pytest.mark.slow
def test_address_where_something_else_listens_is_refused_within_a_minute(
    silent: int, environment: dict[str, str], tmp_path: Path
):
    began = time.monotonic()
    command = [sys.executable, "-m", "search.run", "--space", "bas", "--storage", str(tmp_path / "runs")]
    command += ["--ray-address", f"127.0.0.1:{silent}"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    # The cluster gets 20 s, the rest is the start of two Python processes on a busy machine; Ray itself takes 9 min.
    assert time.monotonic() - began < 60
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --ray-address: what listens at 127.0.0.1:{silent} does not answer as a Ray cluster")
    assert not (tmp_path / "runs").exists()


def test_output_of_ray_is_kept_apart_from_the_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = "def init(*a, **k): print('(raylet) a node has died', flush=True)\n\ndef nodes(): return []\n"
    (tmp_path / "ray.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    with ChildProcess(probe, "10.0.0.1:6379") as child:
        assert child.receive(60) == []
        assert child.output() == "(raylet) a node has died\n"


def test_ray_imported_without_its_variable_is_refused_before_the_cluster_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    search = SearchConfig(ray_address="10.0.0.1:6379")
    with pytest.raises(ConfigError, match="set RAY_AUTH_MODE=token before Ray is imported"), connect(search, ""):
        pass
