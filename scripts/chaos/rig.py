"""Start, observe and kill the processes of scripts.chaos: runs of the search, and an MLflow server."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


class Driver:
    """A process of `python -m search.run`, with its output and its descendants.

    Args:
        arguments: of search.run.
        environment: variables of the process.
        log: file to which the output is appended; its folder is the working directory.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path):
        self.started = time.monotonic()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.run", *arguments],
            cwd=log.parent,
            env=environment | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal must not reach the run
        )
        self.reader = threading.Thread(target=self.read, args=(log,), daemon=True)
        self.reader.start()

    def read(self, log: Path) -> None:
        """Read the output until it ends; runs in a thread."""
        assert self.process.stdout is not None
        with log.open("a", encoding="utf-8") as file:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())
                file.write(line)
                file.flush()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def count(self, text: str) -> int:
        """Return the number of lines of the output so far that contain a text."""
        return sum(text in line for line in list(self.lines))

    def family(self) -> list[psutil.Process]:
        """Return all descendants of the process, including Ray's workers."""
        return family(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        return [process for process in self.family() if is_worker(process)]

    def wait(self, limit_s: float) -> int | None:
        """Wait for the end of the process; returns the exit code, or None after `limit_s` seconds."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        self.reader.join(2)  # orphaned children keep the pipe open for a while
        return code

    def send(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the process; returns its descendants, which may outlive it."""
        members = self.family()
        self.process.send_signal(number)
        return members


def family(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process; empty if the process is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is a Ray worker that runs a task or actor."""
    try:
        name = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return name.startswith("ray::") and not any(other in name for other in ("IDLE", "Agent"))


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; ignores those that are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


class Server:
    """An MLflow tracking server on a free port of this machine; may be killed and started again."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers; raises TimeoutError after 120 s."""
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)],
                cwd=self.folder,
                env=self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not wait_until(self.answers, 120):
            raise TimeoutError(f"the MLflow server does not answer; see {self.folder / 'server.log'}")

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server and its workers (kill -9)."""
        if self.process is not None:
            members = family(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)
            end(members)
            self.process.wait()
            self.process = None


def wait_until(condition: Callable[[], bool], limit_s: float, pause_s: float = 0.05) -> bool:
    """Wait until a condition is true; returns False after `limit_s` seconds.  Checks it every `pause_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
