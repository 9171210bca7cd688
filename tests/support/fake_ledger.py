"""A ledger of made-up trials, for tests of what reads one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fgseg.labels import FOREGROUND
from fgseg.results import EpochResult
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata

START = 1_700_000_000.0
"""Unix seconds at which the study begins."""
SETTINGS = {
    "train.lr": 6e-5,
    "train.epochs": 3,
    "train.select": "last",
    "train.seed": 42,
    "data.reader": "streets",
    "data.root": None,
    "model.name": "small",
}
METADATA = StudyMetadata(
    study="quickstart-bas", space="bas", title="Boundary-aware", experiment="quickstart", settings=SETTINGS
)


def epoch(number: int, miou: float, trial: int = 0, **changes: Any) -> EpochResult:
    iou = {c.key: miou + 0.01 * c.label for c in FOREGROUND}
    wall_time = START + 100 * trial + 10.125 * number
    result = EpochResult(number, miou, iou, [[1] * 7] * 7, 1 / number, {"ssim": 0.4}, 20.0, 10.0, wall_time, 1)
    return replace(result, **changes)


def trial(number: int, state: str = "complete", done: int = 3, **changes: Any) -> TrialRecord:
    results = [epoch(k, 0.1 * k + 0.01 * number, number) for k in range(1, done + 1)]
    record = TrialRecord(
        number=number,
        state=State(state),
        params={"loss.ssim": 0.25 + number},
        attempt=1,
        failures=0,
        epochs=results,
        value=results[-1].miou if state == "complete" else None,
        reason={"fail": "loss was NaN in epoch 2"}.get(state),
        started=START + 100 * number,
        ended=None if state == "running" else START + 100 * number + 50,
        length=3,
        selected=done if state == "complete" else None,
    )
    return replace(record, **changes)


class FakeLedger:
    """As much of a ledger as the tracker reads."""

    def __init__(self, *records: TrialRecord):
        self.records = {record.number: record for record in records}

    def put(self, record: TrialRecord) -> None:
        self.records[record.number] = record

    def trial(self, number: int) -> TrialRecord:
        return self.records[number]

    def trials(self) -> list[TrialRecord]:
        return list(self.records.values())

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        complete = [r for r in among or self.records.values() if r.value is not None]
        return max(complete, key=lambda r: r.value or 0.0, default=None)
