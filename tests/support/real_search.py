"""A real `python -m search.run` to be killed, frozen, interrupted and continued by tests."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord

TINY = [
    "data.height=64", "data.width=128", "data.train=8", "data.val=4", "data.test=4", "train.epochs=4",
    "model.name=small", "search.copy_paste.prob.high=0.9",
]  # fmt: skip


def command(storage: Path, *arguments: str) -> list[str]:
    """The command line of a small study of bas_cp."""
    return [sys.executable, "-m", "search.run", *small_study(storage), *arguments]


def replayed(storage: Path, *arguments: str, epoch_s: float = 1.0) -> list[str]:
    """The same with trials that are computed from a formula: for faults that do not depend on a training."""
    return [
        *(sys.executable, "-m", "scripts.chaos.replayed_search", str(epoch_s)),
        *small_study(storage),
        *arguments,
    ]


def small_study(storage: Path) -> list[str]:
    """The arguments of a small study of bas_cp."""
    sets = [part for s in TINY for part in ("--set", s)]
    base = ["--space", "bas_cp", "--study", "small", "--storage", str(storage)]
    return [*base, "--no-register", *sets]  # registering takes seconds, and has tests of its own


class Driver:
    """A running command, by default a search, that prints every epoch.

    What it prints is gathered in a file: nothing waits for a reader.
    """

    def __init__(
        self, storage: Path, environment: dict[str, str], *arguments: str, command: Callable[..., list[str]] = command
    ):
        storage.parent.mkdir(parents=True, exist_ok=True)
        self.storage = storage
        self.log = storage.parent / f"{storage.name}-{time.monotonic_ns()}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command(storage, *arguments), "--verbose"],
                env=environment,
                cwd=storage.parent,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, limit_s: float = 300) -> "re.Match[str]":
        """Wait until the run has printed something."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if found := re.search(pattern, self.output):
                return found
            assert self.process.poll() is None, self.output
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in:\n{self.output}")

    def workers(self) -> list[psutil.Process]:
        """The processes that train, one for each trial."""
        return self.processes("ray::ImplicitFunc")

    def processes(self, title: str) -> list[psutil.Process]:
        """The processes below this run's own one whose title holds a text."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                found += [process] if title in " ".join(process.cmdline()[:1]) else []
        return found

    def kill(self) -> None:
        """kill -9 of the driver, and an end for what it started (its workers end by themselves, but later)."""
        if self.process.poll() is not None:
            return
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in below:
            try:
                process.wait(timeout=15)
            except psutil.TimeoutExpired:
                process.kill()

    def stop(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal; gives the exit code and the seconds until the end."""
        started = time.monotonic()
        os.kill(self.process.pid, number)
        return self.process.wait(timeout=60), time.monotonic() - started

    def finish(self, limit_s: float = 600) -> int:
        """Wait for the end; gives the exit code."""
        return self.process.wait(timeout=limit_s)


def trials(storage: Path) -> list[TrialRecord]:
    """Return what the ledger holds of the study `small`."""
    return Ledger(f"sqlite:///{storage}/small/study.db", "small").trials()


def clean(storage: Path, **options: object) -> None:
    """Assert that the audit finds nothing."""
    assert audit(storage, "small", **options) == []
