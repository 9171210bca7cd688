"""Check the ledger, checkpoints and MLflow runs of the study of scripts.chaos after each fault."""

from pathlib import Path

from fgseg.checkpoints.manifest import list_manifests
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord

STUDY = "chaos"


class LedgerChecks:
    """Checks of one study; every call reads ledger, checkpoints and MLflow again.

    Args:
        storage: folder of studies.
        uri: MLflow server or database.
    """

    def __init__(self, storage: Path, uri: str):
        self.storage, self.uri = storage, uri
        self.kept: dict[int, list[EpochResult]] = {}
        """Saved epochs by trial, as of the last check: none of them may be trained again."""

    def ledger(self) -> Ledger:
        """Open the study's ledger; raises LookupError before there is a study."""
        return Ledger(f"sqlite:///{self.storage / STUDY / 'study.db'}", STUDY)

    def records(self) -> list[TrialRecord]:
        """Return all trials; empty before there is a study."""
        try:
            return self.ledger().trials()
        except LookupError:
            return []

    def deaths(self) -> int:
        """Return the number of attempts whose process died."""
        return sum(record.failures for record in self.records())

    def check(self, budget: int) -> list[str]:
        """Return one line per problem after a fault, and record the epochs that are saved now.

        Args:
            budget: trials of the study.
        """
        records = self.records()
        problems = audit(self.storage, STUDY, self.uri, trials=budget, interrupted=True) if records else []
        problems += self.lost_epochs(records)
        for record in records:
            manifests = list_manifests(LocalStore(self.storage / STUDY / "trials" / str(record.number)))
            written = [m.history for m in manifests[:1] if record.state is State.RUNNING]
            self.kept[record.number] = max([self.kept.get(record.number, []), record.epochs, *written], key=len)
        return problems

    def lost_epochs(self, records: list[TrialRecord]) -> list[str]:
        """Return one line per saved epoch that was trained again or is missing."""
        problems = []
        for record in records:
            saved = self.kept.get(record.number, [])
            for kept, recorded in zip(saved, record.epochs, strict=False):
                if kept.wall_time != recorded.wall_time:
                    problems.append(f"trial {record.number}: epoch {kept.epoch} was trained again")
            if record.state is State.COMPLETE and len(record.epochs) < len(saved):
                problems.append(f"trial {record.number}: epoch {len(saved)} is missing")
        return problems

    def status(self) -> str:
        """Return the number of trials by state and the number of epochs in one line."""
        records = self.records()
        states = [record.state for record in records]
        parts = [f"{states.count(state)} {state}" for state in State if state in states]
        return f"{', '.join(parts) or 'no trial'}; {sum(len(record.epochs) for record in records)} epochs"
