"""A ledger of made-up trials, for tests of its readers."""

from collections.abc import Sequence

from search.ledger.records import TrialRecord, best_trial
from search.ledger.study_metadata import StudyMetadata

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


class FakeLedger:
    """As much of a ledger as the tracker and the retention of checkpoints read."""

    metadata = METADATA

    def __init__(self, *records: TrialRecord):
        self.records = {record.number: record for record in records}

    def put(self, record: TrialRecord) -> None:
        self.records[record.number] = record

    def trial(self, number: int) -> TrialRecord:
        return self.records[number]

    def trials(self) -> list[TrialRecord]:
        return list(self.records.values())

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        return best_trial(self.trials() if among is None else among, changed_batch=True)
