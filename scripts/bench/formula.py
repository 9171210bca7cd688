"""Epochs of the orchestration benchmark, from a formula.  Imports neither torch nor Ray."""

import math
import time

from fgseg.results import EpochResult
from search.execution.messages import TrialJob


def synthetic_epoch(job: TrialJob, number: int, started: float) -> EpochResult:
    """Return an epoch of a saturating learning curve, which is lower the farther the trial is from a point of `slc`.

    `seconds` and `wall_time` are measured, so that the ledger contains the worker's busy time.

    Args:
        job: of the trial.
        number: of the epoch, from 1.
        started: start of the epoch, seconds since 1970.
    """
    off = [math.log10(value / 2) ** 2 for key, value in job.settings.items() if key.startswith("class_weights.")]
    top = 0.6 - 0.02 * sum(off) - 0.05 * math.log10(job.settings["loss.ssim"]) ** 2
    miou = top * (1 - 0.5**number)
    classes = [key for key in job.settings if key.startswith("class_weights.")]
    iou = {key.removeprefix("class_weights."): miou + 0.01 * (k - 3.5) for k, key in enumerate(classes) if k > 0}
    terms = {"cross_entropy": 0.3, "ssim": 0.4, "lovasz": 0.5}
    now = time.time()
    return EpochResult(
        number,
        miou,
        iou,
        [[9999] * len(classes)] * len(classes),
        1 / number,
        terms,
        99.0,
        now - started,
        now,
        job.attempt,
    )
