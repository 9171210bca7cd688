"""Trials of the orchestration benchmark, which replay a formula instead of training.

Imports no torch, so that the memory of one machine suffices for 64 workers.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from scripts.bench.formula import synthetic_epoch
from search.execution.messages import TrialJob, TrialReport
from search.execution.worker import send_to_driver

GATE_S = 600
"""Seconds until all worker processes must have started; then TimeoutError."""


@dataclass(frozen=True)
class Gate:
    """Delays the first trials until the worker processes of all concurrent trials have started.

    Two cores need minutes to start 64 processes.  Without the gate, Ray Tune would give the process of an ended trial
    to a waiting one and end the process started for it, so that short trials would never use all processes.
    """

    folder: str
    """Folder in which each process creates a file."""
    processes: int
    """Number of worker processes to wait for."""
    spread_s: float = 0.0
    """Seconds over which the first trials then start, one after the other; 0: all at once."""

    def wait(self) -> None:
        """Wait until all processes have called this method; raises TimeoutError after `GATE_S`.  May be repeated."""
        marker, began = Path(self.folder, str(os.getpid())), time.monotonic()
        if marker.exists():
            return
        marker.touch()
        while len(arrived := sorted(os.listdir(self.folder))) < self.processes:
            if time.monotonic() - began > GATE_S:
                raise TimeoutError(f"{len(arrived)} of {self.processes} processes have started")
            time.sleep(0.5)
        time.sleep(self.spread_s * arrived.index(marker.name) / self.processes)


def replay(epoch_s: float, gate: Gate) -> Callable[[dict[str, Any]], None]:
    """Return a replacement of the worker's `run_trial` whose epochs last `epoch_s` seconds, with IoU from a formula."""

    def run_trial(config: dict[str, Any]) -> None:
        gate.wait()
        job = TrialJob(**config)
        report = TrialReport(job.number, job.attempt)
        for number in range(1, job.settings["train.epochs"] + 1):
            started = time.time()
            time.sleep(epoch_s)
            report.epochs.append(synthetic_epoch(job, number, started))
            send_to_driver(report)

    return run_trial


def no_op(gate: Gate) -> Callable[[dict[str, Any]], None]:
    """Return a trial of Ray Tune that reports once and ends."""

    def run_trial(config: dict[str, Any]) -> None:
        gate.wait()
        tune.report({"epoch": 1})

    return run_trial
