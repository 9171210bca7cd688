"""Run a Ray cluster of several nodes on one machine; each node is started by its script and can be killed."""

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
"""Seconds until a node must be up; then RuntimeError."""


class Node:
    """A head or worker node: the process of scripts/cluster_head.sh or cluster_worker.sh, and its descendants.

    Args:
        arguments: command line of the script.
        environment: variables of its process.
        folder: working directory; the output goes to `node.log` in it.
    """

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
    def output(self) -> str:
        """Output of the script so far."""
        return (self.folder / "node.log").read_text()

    def wait(self) -> None:
        """Wait until the node is up; raises RuntimeError after START_LIMIT_S or if the script ends."""
        up = wait_until(lambda: "search: " in self.output or self.process.poll() is not None, START_LIMIT_S)
        if not up or "search: " not in self.output:
            raise RuntimeError(f"a node did not start: {self.output}")

    def processes(self) -> list[psutil.Process]:
        """Return every process of the node seen so far; psutil does not find the children of a dead parent."""
        known = {process.pid for process in self.members}
        self.members += [process for process in family(self.process.pid) if process.pid not in known]
        return self.members

    def kill_raylet(self) -> None:
        """Kill the raylet only (kill -9); the other processes of the node have to detect its death."""
        end(process for process in self.processes() if is_raylet(process))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the node, e.g. SIGSTOP to freeze the node."""
        for process in self.processes():
            if process.is_running():
                process.send_signal(number)

    def kill(self) -> None:
        """Kill all processes of the node (kill -9), as in a power failure."""
        self.processes()
        self.process.kill()
        end(self.members)
        self.process.wait()


def is_raylet(process: psutil.Process) -> bool:
    """Return whether a process is a raylet, which manages a node."""
    try:
        return process.name() == "raylet"
    except psutil.Error:
        return False


class Cluster:
    """A cluster of a head that runs no trials, and workers of one core each.

    Args:
        environment: variables of every node; a token and its folder are added.
        workers: number of workers at the start.
        host: address of the head; by default that of this machine.
    """

    def __init__(self, environment: dict[str, str], workers: int, host: str | None = None):
        self.folder = Path(
            tempfile.mkdtemp(prefix="fg-", dir="/tmp")
        )  # Linux limits the path of a socket to 107 characters
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
        """Start a node without waiting for it; `before` is a command prefix such as `ip netns exec`."""
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
        """Return the workers whose script still runs; a script ends with its raylet."""
        return [node for node in self.nodes if node is not self.head and node.process.poll() is None]

    def close(self) -> None:
        """Kill every process of every node, and remove their files."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """Return a free port, above the range that Ray gives to workers and below the system's ephemeral range."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
