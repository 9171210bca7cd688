"""Ray clusters of several nodes on one machine, each node started by its script and broken by its own processes."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from scripts.chaos.rig import ROOT, end, family, wait_until

START_LIMIT_S = 90.0


class Node:
    """A head or a worker: scripts/cluster_head.sh or cluster_worker.sh in the foreground, and all that it started."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], folder: Path):
        self.folder = folder
        with (folder / "node.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*arguments, "--temp-dir", str(folder)],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.members: list[psutil.Process] = []

    @property
    def said(self) -> str:
        """What the script has printed."""
        return (self.folder / "node.log").read_text()

    def wait(self) -> None:
        """Return once it is up; raises RuntimeError where it does not come up."""
        up = wait_until(lambda: "search: " in self.said or self.process.poll() is not None, START_LIMIT_S)
        if not up or "search: " not in self.said:
            raise RuntimeError(f"a node did not start: {self.said}")

    def processes(self) -> list[psutil.Process]:
        """Every process of the node that was ever seen: a child whose parent died is a child no more."""
        known = {process.pid for process in self.members}
        self.members += [process for process in family(self.process.pid) if process.pid not in known]
        return self.members

    def kill_raylet(self) -> None:
        """kill -9 of the raylet alone; what it leaves behind has to notice by itself."""
        end(process for process in self.processes() if is_raylet(process))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the node's processes, such as SIGSTOP to freeze it as a whole."""
        for process in self.processes():
            if process.is_running():
                process.send_signal(number)

    def kill(self) -> None:
        """kill -9 of everything at once, as when the power fails."""
        self.processes()
        self.process.kill()
        end(self.members)
        self.process.wait()


def is_raylet(process: psutil.Process) -> bool:
    """Whether it is the process that manages a node."""
    try:
        return process.name() == "raylet"
    except psutil.Error:
        return False


class Cluster:
    """A head that runs no trials, and workers of one core each.

    Args:
        environment: variables of every node; a token and its folder are added.
        workers: how many it starts with.
        host: address of the head; by default the machine's own.
    """

    def __init__(self, environment: dict[str, str], workers: int, host: str | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="fg-", dir="/tmp"))  # a socket's path may have 107 characters only
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = environment | {
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.port = free_port()
        self.nodes: list[Node] = []
        where = ["--host", host] if host else []
        self.address = f"{host or '127.0.0.1'}:{self.port}"
        try:
            self.head = self.start("head", "--cpus", "0", "--port", str(self.port), *where)
            self.head.wait()
            for node in [self.add_worker() for _ in range(workers)]:
                node.wait()
        except BaseException:
            self.close()
            raise

    def start(self, kind: str, *arguments: str, before: Sequence[str] = (), **environment: str) -> Node:
        """Start a node without waiting for it; `before` is a command that runs the script, such as `ip netns exec`."""
        folder = self.folder / str(len(self.nodes))
        folder.mkdir()
        dashboard = ["--dashboard-port", str(free_port())] if kind == "head" else []
        command = [*before, str(ROOT / "scripts" / f"cluster_{kind}.sh"), *arguments, *dashboard]
        node = Node(command, self.environment | environment, folder)
        self.nodes.append(node)
        return node

    def add_worker(self, *arguments: str, before: Sequence[str] = (), **environment: str) -> Node:
        """Start a worker of one core without waiting for it."""
        where = ["--address", self.address, "--cpus", "1", "--gpus", "0"]
        return self.start("worker", *where, *arguments, before=before, **environment)

    def workers(self) -> list[Node]:
        """The workers whose script still runs; it ends with its raylet."""
        return [node for node in self.nodes if node is not self.head and node.process.poll() is None]

    def close(self) -> None:
        """End every process of every node, and remove their files."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on, above those that Ray gives to workers and below those that the system gives."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
