"""A study as every process may read it: which trials exist, their records, and who drives it."""

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.ledger.database import has_study, retry
from search.ledger.lock import LockHolder, read_holder
from search.ledger.records import TrialRecord, best_trial, read_record
from search.ledger.storage import open_storage
from search.ledger.study_metadata import StudyMetadataRows


class StudyReader(StudyMetadataRows):
    """An existing study, to read; `trial` and `trials` may be called from other threads while the driver writes.

    Args:
        url: SQLAlchemy address, such as sqlite:////abs/path/study.db.
        study: name of the study.

    Raises:
        LookupError: the study does not exist.
    """

    def __init__(self, url: str, study: str) -> None:
        if not self.exists(url, study):
            raise LookupError(f"no study {study} in this storage")
        self._url = url
        self._name = study
        self._storage = open_storage(url)
        super().__init__(optuna.load_study(study_name=study, storage=self._storage))
        self._records: dict[int, TrialRecord] = {}

    @staticmethod
    def exists(url: str, study: str) -> bool:
        """Return whether the study exists; creates neither study nor file."""
        return has_study(url, study)

    def holder(self) -> LockHolder | None:
        """Return the live driver that holds the study's lock; None if there is none."""
        return read_holder(self._url, self._name)

    @retry
    def open_trials(self) -> list[int]:
        """Return the numbers of the trials that have not ended, ascending."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    @retry
    def trial(self, number: int) -> TrialRecord:
        """Return the record of a trial.

        A record that this process has reported or that has ended comes from memory, which saves milliseconds per epoch.
        """
        return self._records.get(number) or self._record(self._read(number))

    @retry
    def trials(self) -> list[TrialRecord]:
        """Return the records of all trials that were ever started, by number; see `trial`."""
        return [self._record(t) for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        """Return the record of a trial, and cache it if the trial has ended, since it cannot change any more."""
        record = self._records.get(trial.number)
        if record is None or record.state.name != trial.state.name:
            record = read_record(trial)
            if trial.state.is_finished():
                self._records[trial.number] = record
        return record

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        """Return the COMPLETE trial with the highest value, of equal ones the earliest; None if there is none.

        Trials with overrides are excluded unless the study's metadata have `allow_changed_batch`.

        Args:
            among: the study's trials if already read; by default they are read.
        """
        return best_trial(self.trials() if among is None else among, self.metadata.allow_changed_batch)

    def _read(self, number: int) -> FrozenTrial:
        self._records.pop(number, None)  # the caller may change the trial, so that the cached record becomes outdated
        study_id = self._study._study_id
        return self._storage.get_trial(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
