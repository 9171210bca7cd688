"""The Ray cluster of a run: a private one on this machine, or one that runs already."""

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from search.cluster.node_probe import alive_nodes
from search.study.config import SearchConfig
from search.study.resources import Node, Resources, answers, is_private, share, share_cluster

RAY_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a box even when it is told to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # trials without a GPU keep the machine's own CUDA_VISIBLE_DEVICES
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Ray starts a trial of a drained node again, behind our back
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "256",  # else a trial waits until the process of the one before has started
    "TUNE_WARN_THRESHOLD_S": "5",
}


REFRESH_S = 5.0
"""How often the cluster is looked at."""
UNREACHABLE_S = 20.0
"""How long its head may be silent."""


def ray_environment() -> dict[str, str]:
    """The environment in which Ray is used: our settings, and with token authentication where there is a token at all.

    Without RAY_AUTH_MODE, Ray would join a cluster without the token that lies in its own default place.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = named or Path("~/.ray/auth_token").expanduser().is_file()
    return RAY_SETTINGS | ({"RAY_AUTH_MODE": "token"} if token else {}) | os.environ


@contextmanager
def cluster(search: SearchConfig, needed: str, install_handlers: Callable[[], None]) -> Iterator[Resources]:
    """Start or join a cluster; gives what each trial gets, and leaves or ends the cluster at the end.

    The `surroundings` must be in the environment before anything imports Ray, which reads them then.

    Args:
        search: address of the cluster, and what a trial shall get.
        needed: see `search.study.resources.gpu_needed`.
        install_handlers: sets this command's signal handlers again, which Ray replaces when it starts and when it ends.

    Raises:
        ConfigError: not even one trial fits, or fp16 is asked for where trials have no GPU.
    """
    import ray

    ended, location = threading.Event(), on_loopback() if is_private(search) else nullcontext()
    with (
        location,
        ThreadPoolExecutor(1) as thread,
    ):  # the system ends a private cluster's processes with this very thread
        wait_keeping_signal_handlers(thread.submit(start, search), install_handlers)
        try:
            head = ray.get_runtime_context().gcs_address
            threading.Thread(target=watch_head, args=(head, ended), daemon=True).start()
            if is_private(search):
                total = ray.cluster_resources()
                yield share(search, total.get("CPU", 0), total.get("GPU", 0), needed)
            else:
                yield share_cluster(search, alive_nodes(), needed)
        finally:
            if is_private(search):
                ended.set()  # its head is about to go
            wait_keeping_signal_handlers(thread.submit(ray.shutdown), install_handlers)
            ended.set()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let Ray's servers listen on 127.0.0.1 only, as on Windows and macOS: else Ray takes an address of the network.

    The token that lets processes in, which Ray would make readable for everyone, is made here where there is none.
    """
    from ray._private import ray_constants

    token = Path("~/.ray/auth_token").expanduser()
    with suppress(OSError):
        token.parent.mkdir(exist_ok=True)
        with os.fdopen(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[name]
        ray_constants.ENABLE_RAY_CLUSTER = True


def start(search: SearchConfig) -> None:
    """Start or join the cluster, quietly."""
    import ray

    ray.init(
        address=search.ray_address or "local",
        include_dashboard=False if search.ray_address is None else None,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=os.environ.get("RAY_TMPDIR") if search.ray_address is None else None,
    )
    ray._private.worker._worker_logs_enabled = False  # of a node that dies it would print the last lines of its log
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of a trial is told by us, without a traceback


def wait_keeping_signal_handlers(done: "Future[None]", install_handlers: Callable[[], None]) -> None:
    """Wait until Ray has started or ended in its own thread; meanwhile this one keeps the command's signal handlers.

    Ray's core takes that of SIGTERM for itself when it starts, and leaves none when it ends, a second before it is
    done; a signal would end the command at once, with whatever was still to be written.
    """
    while not done.done():
        wait([done], timeout=0.002)
        install_handlers()
    done.result()


def watch_head(address: str, ended: threading.Event) -> None:
    """End this process once the head has been silent for too long.

    Ray's own calls block then, deaf to signals, until after 60 s Ray ends the process without a word to people.  As
    after a kill, the same command continues.
    """
    heard = time.monotonic()
    while not ended.wait(REFRESH_S):
        if answers(address):
            heard = time.monotonic()
        elif time.monotonic() - heard > UNREACHABLE_S and not ended.is_set():
            print(
                f"error: the head of the Ray cluster, {address}, has not answered for {UNREACHABLE_S:.0f} s; run the "
                "same command again, with the --ray-address of a cluster that runs",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


class NodeMonitor:
    """The nodes of the cluster, asked of Ray every few seconds.

    Args:
        resources: of a trial.
        tell: called with a line for people when a node comes or goes.
    """

    def __init__(self, resources: Resources, tell: Callable[[str], None]) -> None:
        import ray

        self.resources, self.tell = resources, tell
        self.head = ray.get_runtime_context().gcs_address
        self.dead: set[str] = set()
        self.known = {node.id: node for node in alive_nodes()}
        self.asked = time.monotonic()

    def refresh(self) -> None:
        """Ask Ray, and tell what has changed.  Nothing is asked while the head does not answer: Ray would wait."""
        self.asked = time.monotonic()
        if not answers(self.head):
            return
        now = {node.id: node for node in alive_nodes() if node.id not in self.dead}
        for node in self.known.keys() - now.keys():
            self.mark_dead(node)
        for node in now.keys() - self.known.keys():
            self.tell(f"{now[node]} has joined")
        self.known = now

    def mark_dead(self, node: str) -> None:
        """Count a node as dead from now on: Ray never takes one back."""
        self.tell(f"{self.known.pop(node)} is lost; its trials start again elsewhere, from their checkpoints")
        self.dead.add(node)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        if time.monotonic() - self.asked > REFRESH_S:
            self.refresh()
        return list(self.known.values())

    def all_dead(self) -> bool:
        """True once no node of the cluster is alive: trials would wait for ever."""
        return not self.nodes

    def capacity(self) -> int:
        """How many trials may run at once; at least one, which waits inside Ray until a node comes that carries it."""
        fitting = sum(node.fitting(self.resources.cpus, self.resources.gpus) for node in self.nodes)
        return max(1, min(fitting, self.resources.concurrent))

    def is_dead(self, node: str) -> bool:
        """Whether a node has died.  Ray finds that out after some 15 s; that nothing listens there shows at once."""
        self.refresh()
        if node in self.known and not answers(f"{self.known[node].address}:{self.known[node].port}"):
            self.mark_dead(node)
        return node not in self.known
