"""What the workers of bench_orchestration.py do instead of training; without torch, so that 64 of them fit."""

import math
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from fgseg.epoch import EpochResult
from fgseg.labels import FOREGROUND
from search.job import Job, Report
from search.trial import send_to_driver


def replay(epoch_s: float) -> Callable[[dict[str, Any]], None]:
    """A stand-in for search.trial.run_trial: every epoch lasts `epoch_s` seconds, and its IoU comes from a formula."""

    def run_trial(config: dict[str, Any]) -> None:
        job = Job(**config)
        report = Report(job.number, job.attempt)
        for number in range(1, job.settings["train.epochs"] + 1):
            started = time.time()
            time.sleep(epoch_s)
            report.epochs.append(made_up_epoch(job, number, started))
            send_to_driver(report)

    return run_trial


def made_up_epoch(job: Job, number: int, started: float) -> EpochResult:
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


def no_op(config: dict[str, Any]) -> None:
    """The least that a trial of Ray Tune can do."""
    tune.report({"epoch": 1})
