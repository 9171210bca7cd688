"""What the workers of the orchestration benchmark do instead of training; without torch, so that 64 of them fit."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from fgseg.labels import FOREGROUND
from fgseg.results import EpochResult
from search.execution.messages import TrialJob, TrialReport
from search.execution.worker import send_to_driver

GATE_S = 600
"""How long the processes may take to start."""


@dataclass(frozen=True)
class Gate:
    """Holds the first trials back until the processes of all are up.

    Two cores start 64 processes in minutes, on a cluster every node starts its own; and a trial that ends before lends
    its process to one that waits, whose own is ended half started: with short trials they would never all be up.
    """

    folder: str
    processes: int
    spread_s: float = 0.0
    """Over how long the first trials then begin, one after the other; 0: all at once."""

    def wait(self) -> None:
        """Return once so many processes have been here; raises TimeoutError after `GATE_S`."""
        mark, began = Path(self.folder, str(os.getpid())), time.monotonic()
        if mark.exists():
            return
        mark.touch()
        while len(here := sorted(os.listdir(self.folder))) < self.processes:
            if time.monotonic() - began > GATE_S:
                raise TimeoutError(f"{len(here)} of {self.processes} processes came up")
            time.sleep(0.5)
        time.sleep(self.spread_s * here.index(mark.name) / self.processes)


def replay(epoch_s: float, gate: Gate) -> Callable[[dict[str, Any]], None]:
    """A stand-in for the worker's `run_trial`: every epoch lasts `epoch_s` seconds, and IoU comes from a formula."""

    def run_trial(config: dict[str, Any]) -> None:
        gate.wait()
        job = TrialJob(**config)
        report = TrialReport(job.number, job.attempt)
        for number in range(1, job.settings["train.epochs"] + 1):
            started = time.time()
            time.sleep(epoch_s)
            report.epochs.append(made_up_epoch(job, number, started))
            send_to_driver(report)

    return run_trial


def made_up_epoch(job: TrialJob, number: int, started: float) -> EpochResult:
    """An epoch on a saturating learning curve, whose height falls with the distance from a point of the space slc.

    `seconds` and `wall_time` are real, so that the ledger knows when the worker was busy.
    """
    off = [math.log10(value / 2) ** 2 for key, value in job.settings.items() if key.startswith("class_weights.")]
    top = 0.6 - 0.02 * sum(off) - 0.05 * math.log10(job.settings["loss.ssim"]) ** 2
    miou = top * (1 - 0.5**number)
    iou = {c.key: miou + 0.01 * (c.label - 3.5) for c in FOREGROUND}
    terms = {"cross_entropy": 0.3, "ssim": 0.4, "lovasz": 0.5}
    now = time.time()
    return EpochResult(number, miou, iou, [[9999] * 7] * 7, 1 / number, terms, 99.0, now - started, now, job.attempt)


def no_op(gate: Gate) -> Callable[[dict[str, Any]], None]:
    """The least that a trial of Ray Tune can do."""

    def run_trial(config: dict[str, Any]) -> None:
        gate.wait()
        tune.report({"epoch": 1})

    return run_trial
