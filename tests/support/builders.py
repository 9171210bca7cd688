"""Epochs and trials with plausible values; each test changes the fields that it is about."""

import math
from dataclasses import replace
from typing import Any

from thin_street import FOREGROUND

from fgseg.checkpoints.untrained_result import UntrainedResult
from fgseg.results import EpochResult
from search.ledger.records import State, TrialRecord

START = 1_700_000_000.0
"""Unix seconds at which the made-up study begins."""


def make_epoch(number: int = 1, miou: float = 0.5, trial: int = 0, **changes: Any) -> EpochResult:
    """An epoch of a trial; its IoUs lie 0.01 per label above `miou`, and `changes` replaces fields."""
    result = EpochResult(
        epoch=number,
        miou=miou,
        iou={c.key: miou + 0.01 * c.label for c in FOREGROUND},
        confusion=[[1] * 7] * 7,
        loss=1 / number,
        terms={"ssim": 0.4},
        images_per_s=20.0,
        seconds=10.0,
        wall_time=START + 100 * trial + 10.125 * number,
        attempt=1,
    )
    return replace(result, **changes)


def make_history(*mious: float, **changes: Any) -> list[EpochResult]:
    """Epochs from 1 with these mIoUs; `changes` replaces fields in each."""
    return [make_epoch(number, miou, **changes) for number, miou in enumerate(mious, start=1)]


def make_trial(number: int = 0, state: str = "complete", done: int = 3, **changes: Any) -> TrialRecord:
    """A trial in a state after `done` of 3 epochs whose mIoU grows by 0.1; `changes` replaces fields."""
    epochs = changes.pop("epochs", [make_epoch(k, 0.1 * k + 0.01 * number, number) for k in range(1, done + 1)])
    record = TrialRecord(
        number=number,
        state=State(state),
        params={"loss.ssim": 0.25 + number},
        attempt=1,
        failures=0,
        epochs=epochs,
        value=epochs[-1].miou if state == "complete" else None,
        reason={"fail": "loss was NaN in epoch 2"}.get(state),
        started=START + 100 * number,
        ended=None if state == "running" else START + 100 * number + 50,
        length=3,
        selected=epochs[-1].epoch if state == "complete" else None,
    )
    return replace(record, **changes)


def make_untrained(miou: float = 0.25, **changes: Any) -> UntrainedResult:
    """The result of an untrained checkpoint on two frames; no light is there, and `changes` replaces fields."""
    iou = {c.key: miou for c in FOREGROUND} | {"traffic_light": math.nan}
    result = UntrainedResult("val", "f00d", START, miou, iou, confusion=[[[1] * 7] * 7] * 2, boundary=[])
    return replace(result, **changes)
