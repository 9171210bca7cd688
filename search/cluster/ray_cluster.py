"""Start a private Ray cluster on this machine, or join a running one; monitor its nodes."""

import gc
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from fgseg.config.errors import FaultError, one_line
from fgseg.garbage import collector_off
from search.cluster.mps import mps_daemon
from search.cluster.node_probe import alive_nodes
from search.study.config import SearchConfig
from search.study.resources import Node, Resources, answers, is_private, share, share_cluster

RAY_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray 2's new output prints a box even with verbose=0
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # trials without a GPU keep the machine's CUDA_VISIBLE_DEVICES
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Ray restarts a trial of a drained node without an event
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "256",  # else a trial waits until the process of the previous one has started
    "TUNE_WARN_THRESHOLD_S": "5",
    "RAY_prestart_worker_first_driver": "0",  # else Ray starts a worker per core that Ray Tune's trials never use
    "RAY_worker_niceness": "0",  # with Ray's 15, any busy process of the machine starves the trials
}
"""Variables for Ray 2; a value that the user has set is kept."""
AUTH_MODE = "RAY_AUTH_MODE"
REFRESH_S = 5.0
"""Seconds between two checks of the cluster's nodes."""
UNREACHABLE_S = 20.0
"""Seconds without an answer of the cluster's head until this process exits."""


def ray_environment() -> dict[str, str]:
    """Return the environment for Ray: os.environ over `RAY_SETTINGS`, with token authentication if there is a token.

    Without RAY_AUTH_MODE, Ray ignores the token in its own default file when it joins a cluster.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = named or Path("~/.ray/auth_token").expanduser().is_file()
    return RAY_SETTINGS | ({AUTH_MODE: "token"} if token else {}) | os.environ


def set_ray_environment() -> None:
    """Put `ray_environment` into os.environ.  Call it before Ray is imported, which reads some variables only then.

    If the caller of the Python API has imported Ray already, RAY_AUTH_MODE stays unset: set now, it would reach Ray's
    servers, but not Ray in this process.  `ray.init` sets it for both when it starts a private cluster.
    """
    environment = ray_environment()
    if imported_without_auth_mode():
        environment.pop(AUTH_MODE, None)
    os.environ.update(environment)


def imported_without_auth_mode() -> bool:
    """Return whether Ray was imported in this process while RAY_AUTH_MODE was not set, so that it sends no token."""
    return "ray" in sys.modules and AUTH_MODE not in os.environ


@contextmanager
def cluster(search: SearchConfig, needed: str, install_handlers: Callable[[], None]) -> Iterator[Resources]:
    """Start or join a cluster; yields the resources of each trial, and leaves or ends the cluster at the end.

    If trials share a GPU of a private cluster, they run under NVIDIA MPS where it is installed (see `mps_daemon`).

    Call `set_ray_environment` first.

    Args:
        search: address of the cluster, and resources of a trial.
        needed: see `search.study.resources.gpu_needed`.
        install_handlers: reinstalls this command's signal handlers, which Ray replaces when it starts and when it ends.

    Raises:
        ConfigError: not even one trial fits, or the settings need a GPU and trials have none.
    """
    import ray

    ended, address = threading.Event(), loopback_of_ray_2() if is_private(search) else nullcontext()
    # The processes of a private cluster end with the thread that started them.
    with address, mps_daemon(search) as variables, ThreadPoolExecutor(1) as thread:
        wait_keeping_signal_handlers(thread.submit(start, search, variables), install_handlers)
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
                ended.set()  # `ray.shutdown` ends the head
            gc.collect()
            # Ray 2 exits the process with code 1 if an object that refers to Ray, such as a trial of Ray Tune, is
            # collected during its shutdown; any thread that allocates memory, such as the heartbeat, may collect.
            with collector_off():
                wait_keeping_signal_handlers(thread.submit(ray.shutdown), install_handlers)
            ended.set()


@contextmanager
def loopback_of_ray_2() -> Iterator[None]:
    """Make Ray's servers listen on 127.0.0.1 only, as on Windows and macOS; by default Ray 2 listens on the network.

    Ray reads the variable for it once, when it is imported, so that its private constant is set as well.  Creates the
    authentication token if there is none, readable by its owner only; Ray would make it readable by all.
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


def start(search: SearchConfig, variables: Mapping[str, str]) -> None:
    """Start or join the cluster, without Ray's own messages.

    Args:
        search: address of the cluster.
        variables: set in the processes of a private cluster only, not in this process.

    Raises:
        FaultError: a private cluster did not start, e.g. within Ray's 30 s on a busy machine.
    """
    import ray

    os.environ.update(variables)  # a private node takes them from the process that starts it
    try:
        ray.init(
            address=search.ray_address or "local",
            include_dashboard=False if search.ray_address is None else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=os.environ.get("RAY_TMPDIR") if search.ray_address is None else None,
        )
    except Exception as error:  # Ray raises no more specific type
        if search.ray_address is not None:
            raise
        reason = one_line(error, first_line=True)
        raise FaultError(
            f"Ray did not start on this machine ({reason}); run the same command again when the machine is less busy"
        ) from None
    finally:
        for name in variables:
            del os.environ[name]
    hide_errors_of_ray_2()
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # this package prints failures, without traceback


def hide_errors_of_ray_2() -> None:
    """Keep Ray 2.60 from printing the cluster's errors, such as the last log lines of a dead node, on standard output.

    `log_to_driver=False` does not cover them, and no public option does.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


def wait_keeping_signal_handlers(done: "Future[None]", install_handlers: Callable[[], None]) -> None:
    """Wait until Ray has started or ended in another thread, reinstalling the command's signal handlers every 2 ms.

    Ray 2 replaces the handler of SIGTERM when it starts, and removes it a second before it has ended.  A signal would
    then kill the command before its last writes.  For the main thread only.
    """
    while not done.done():
        wait([done], timeout=0.002)
        install_handlers()
    done.result()


def watch_head(address: str, ended: threading.Event) -> None:
    """Exit this process if the head does not answer for `UNREACHABLE_S`; runs in a thread until `ended` is set.

    Without a head, Ray 2's calls block and ignore signals, and after 60 s Ray exits the process without a message.  The
    same command resumes the study.
    """
    last_answer = time.monotonic()
    while not ended.wait(REFRESH_S):
        if answers(address):
            last_answer = time.monotonic()
        elif time.monotonic() - last_answer > UNREACHABLE_S and not ended.is_set():
            print(
                f"error: the head of the Ray cluster, {address}, has not answered for {UNREACHABLE_S:.0f} s; run the "
                "same command again, with the --ray-address of a cluster that runs",
                file=sys.stderr,
                flush=True,
            )
            Console().show_cursor()  # a live table hides it
            os._exit(1)


class NodeMonitor:
    """Track the nodes of the cluster, querying Ray every `REFRESH_S`.  Not thread-safe.

    Args:
        resources: of a trial.
    """

    def __init__(self, resources: Resources) -> None:
        import ray

        self.resources = resources
        self.messages: list[str] = []
        self.head = ray.get_runtime_context().gcs_address
        self.dead: set[str] = set()
        self.known = {node.id: node for node in alive_nodes()}
        self.refreshed_at = time.monotonic()

    def refresh(self) -> None:
        """Query Ray for the nodes and record changes; skipped while the head does not answer, since Ray would block."""
        self.refreshed_at = time.monotonic()
        if not answers(self.head):
            return
        now = {node.id: node for node in alive_nodes() if node.id not in self.dead}
        for node in self.known.keys() - now.keys():
            self.mark_dead(node)
        for node in now.keys() - self.known.keys():
            self.messages.append(f"{now[node]} has joined")
        self.known = now

    def mark_dead(self, node: str) -> None:
        """Remove a known node permanently and record the loss: Ray never revives a dead node."""
        self.messages.append(
            f"{self.known.pop(node)} is lost; its trials start again elsewhere, from their checkpoints"
        )
        self.dead.add(node)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are alive, as of at most `REFRESH_S` ago."""
        if time.monotonic() - self.refreshed_at > REFRESH_S:
            self.refresh()
        return list(self.known.values())

    def take_messages(self) -> list[str]:
        """Return a line for each node that joined or was lost since the last call."""
        taken, self.messages = self.messages, []
        return taken

    def all_dead(self) -> bool:
        """Return whether no node of the cluster is alive, so that trials would wait forever."""
        return not self.nodes

    def capacity(self) -> int:
        """Return the number of concurrent trials; at least one, which Ray queues until a node has room."""
        fitting = sum(node.fitting(self.resources.cpus, self.resources.gpus) for node in self.nodes)
        return max(1, min(fitting, self.resources.concurrent))

    def is_dead(self, node: str) -> bool:
        """Return whether a node has died, by connecting to its port: Ray needs about 15 s to detect a dead node."""
        self.refresh()
        if node in self.known and not answers(f"{self.known[node].address}:{self.known[node].port}"):
            self.mark_dead(node)
        return node not in self.known
