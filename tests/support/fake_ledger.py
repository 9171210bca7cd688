"""A ledger of made-up trials, for tests of its readers."""

from collections.abc import Sequence
from typing import Any

from search.ledger.records import TrialRecord


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


def settings_of(record: TrialRecord) -> dict[str, Any]:
    return {"train.lr": 6e-5, "data.root": None, "model.name": "small"} | record.params
