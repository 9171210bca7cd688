"""The books of the study that scripts.chaos breaks: what they hold, and what must not have been lost since."""

from pathlib import Path

from fgseg.checkpoints.manifest import list_manifests
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord

STUDY = "chaos"


class Books:
    """The ledger, checkpoints and MLflow runs of the study, read afresh at every question."""

    def __init__(self, storage: Path, uri: str):
        self.storage, self.uri = storage, uri
        self.kept: dict[int, list[EpochResult]] = {}
        """Epochs that were safe at some fault, by trial: none of them may be trained again."""

    def ledger(self) -> Ledger:
        """The study's ledger, read afresh."""
        return Ledger(f"sqlite:///{self.storage / STUDY / 'study.db'}", STUDY)

    def records(self) -> list[TrialRecord]:
        """All trials; none before there is a study."""
        try:
            return self.ledger().trials()
        except LookupError:
            return []

    def deaths(self) -> int:
        """How many attempts' processes died so far."""
        return sum(record.failures for record in self.records())

    def check(self, budget: int) -> list[str]:
        """What is wrong after a fault of a study of so many trials; notes which epochs are safe from now on."""
        records = self.records()
        problems = audit(self.storage, STUDY, self.uri, trials=budget, interrupted=True) if records else []
        problems += self.done_again(records)
        for record in records:
            manifests = list_manifests(LocalStore(self.storage / STUDY / "trials" / str(record.number)))
            written = [m.history for m in manifests[:1] if record.state is State.RUNNING]
            self.kept[record.number] = max([self.kept.get(record.number, []), record.epochs, *written], key=len)
        return problems

    def done_again(self, records: list[TrialRecord]) -> list[str]:
        """Epochs that were safe, and have been trained again or are gone."""
        problems = []
        for record in records:
            safe = self.kept.get(record.number, [])
            for kept, booked in zip(safe, record.epochs, strict=False):
                if kept.wall_time != booked.wall_time:
                    problems.append(f"trial {record.number}: epoch {kept.epoch} was trained again")
            if record.state is State.COMPLETE and len(record.epochs) < len(safe):
                problems.append(f"trial {record.number}: epoch {len(safe)} is gone")
        return problems

    def status(self) -> str:
        """What the ledger holds, in a few words."""
        records = self.records()
        states = [record.state for record in records]
        parts = [f"{states.count(state)} {state}" for state in State if state in states]
        return f"{', '.join(parts) or 'no trial'}; {sum(len(record.epochs) for record in records)} epochs"
