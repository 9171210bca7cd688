"""The processes of scripts.chaos: a run of the search with its Ray cluster, and an MLflow server."""

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
    """One call of `python -m search.run`, its output as it comes, and every process that belongs to it."""

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
            start_new_session=True,  # a Ctrl-C for us is none for it
        )
        self.reader = threading.Thread(target=self.read, args=(log,), daemon=True)
        self.reader.start()

    def read(self, log: Path) -> None:
        """Collect the output until it ends."""
        assert self.process.stdout is not None
        with log.open("a", encoding="utf-8") as file:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())
                file.write(line)
                file.flush()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started

    def count(self, text: str) -> int:
        """How many lines of the output so far hold this text."""
        return sum(text in line for line in list(self.lines))

    def family(self) -> list[psutil.Process]:
        """Every process that it started, Ray's workers included."""
        return family(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return [process for process in self.family() if is_worker(process)]

    def wait(self, limit_s: float) -> int | None:
        """Its exit code, or None if it takes longer."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        self.reader.join(2)  # orphans hold the pipe open for a while
        return code

    def send(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal; returns the processes that it may leave behind."""
        members = self.family()
        self.process.send_signal(number)
        return members


def family(pid: int) -> list[psutil.Process]:
    """The processes below one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_worker(process: psutil.Process) -> bool:
    """Whether it is one of Ray's workers that has been given something to do."""
    try:
        name = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return name.startswith("ray::") and not any(other in name for other in ("IDLE", "Agent"))


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, whichever of them are still there."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


class Server:
    """An MLflow tracking server on a free port of this machine, that can be killed and started again."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers."""
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
        """Whether it is up."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self.process is not None:
            members = family(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)
            end(members)
            self.process.wait()
            self.process = None


def wait_until(condition: Callable[[], bool], limit_s: float, pause_s: float = 0.05) -> bool:
    """Wait until something holds; returns whether it does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
