"""The ledger: an Optuna study that says which trials exist, what they were asked, every epoch, and how they ended.

Nothing else remembers anything about a study, and every write may be repeated: whatever dies, the same calls continue.
One driver writes (see lock.py), from one thread; `trial` and `trials` may be called from others meanwhile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult, SupersededError, select_epoch
from search.ledger.database import LedgerError, has_study, retry
from search.ledger.fencing import check_attempt, fenced
from search.ledger.lock import LockedError, LockHolder, StudyLock, read_holder
from search.ledger.records import (
    State,
    TrialAttempt,
    TrialRecord,
    best_trial,
    merge_epochs,
    read_attempt,
    read_deaths,
    read_epochs,
    read_overrides,
    read_record,
    read_repeat,
)
from search.ledger.sampling import build_pruner, build_sampler, should_prune
from search.ledger.storage import TrialUpdate, open_storage
from search.ledger.study_metadata import StudyMetadataRows
from search.ledger.trial_source import FixedTrials, SampledTrials, TrialSettings
from search.study.plan import Repeat

__all__ = [
    "Ledger",
    "LedgerError",
    "LockHolder",
    "LockedError",
    "State",
    "SupersededError",
    "TrialAttempt",
    "TrialRecord",
]

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Ledger(StudyMetadataRows):
    """One study.  Its methods raise LedgerError if the database fails for good, KeyError for a trial never asked."""

    def __init__(self, url: str, study: str) -> None:
        """Open a study that exists, to read it (`start` prepares for more); raises LookupError if it does not.

        `url` is an SQLAlchemy address such as sqlite:////abs/path/study.db.
        """
        if not self.exists(url, study):
            raise LookupError(f"no study {study} in this storage")
        self._url = url
        self._name = study
        self._storage = open_storage(url)
        super().__init__(optuna.load_study(study_name=study, storage=self._storage))
        self._settings: TrialSettings | None = None
        self._handed: set[int] = set()
        self._kept: dict[int, TrialRecord] = {}

    @staticmethod
    def exists(url: str, study: str) -> bool:
        """Whether the study is there; creates nothing, neither study nor file."""
        return has_study(url, study)

    @classmethod
    def create(cls, url: str, study: str) -> "Ledger":
        """Create the study, or load it.  The folder of an SQLite file must exist."""
        if not cls.exists(url, study):
            create_study(url, study)
        return cls(url, study)

    def lock(self) -> StudyLock:
        """The study's lock, a context whose `held()` says if it still is ours; LockedError on entering if it is not.

        While it is, the study is read from memory; nothing about a trial is written before or afterwards.
        """
        self._storage.lock = StudyLock(self._url, self._name)
        return self._storage.lock

    @property
    def is_locked(self) -> bool:
        """Whether this process still holds the study's lock."""
        return self._storage.lock is not None and self._storage.lock.is_held()

    def holder(self) -> LockHolder | None:
        """The live driver that holds the study, if any."""
        return read_holder(self._url, self._name)

    @retry
    def start(
        self,
        space: Mapping[str, BaseDistribution],
        start_point: Mapping[str, float | int],
        *,
        trials: int,
        sampler: str,
        pruner: str,
        epochs: int,
        seed: int,
        select: str,
    ) -> None:
        """Prepare asking and telling; to be called once, with the lock held.

        `start_point`, the source's own, becomes trial 0 of a study without trials; like `space` it goes by dotted name.
        `trials` is the budget of the whole study, failed trials included; `epochs` are a trial's.  `sampler`, `pruner`
        and `select` (the epoch that stands for a trial) are settings of that name.
        """
        known = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = build_sampler(sampler, space=space, trials=trials, seed=seed, known=known)
        self._study.pruner = build_pruner(pruner, trials, epochs)
        self._settings = TrialSettings(SampledTrials(space, trials), epochs, select, pruner != "none")
        if not known:
            self._study.enqueue_trial(dict(start_point))

    def start_repeats(self, repeats: Sequence[Repeat], *, epochs: int, select: str) -> None:
        """The same as `start` for a study of repeats, in which nothing is sampled and no trial is stopped early."""
        self._settings = TrialSettings(FixedTrials(repeats), epochs, select, prunes=False)

    @retry
    def next_attempt(self) -> TrialAttempt | None:
        """The next start of a trial, or None if all that there are to be are handed out or ended.

        First come open trials that this driver has not handed out, lowest number first, under their own points; then
        new ones.  The attempt number is in the ledger before it is returned.
        """
        points = self._started.source
        number = next((n for n in self.open_trials() if n not in self._handed), None)
        number = points.start_next(self._study) if number is None else number
        if number is None:
            return None
        trial = self._read(number)
        entry = points.suggest_params(self._study, trial)
        attempt = read_attempt(trial) + 1
        entry.user_attrs |= {"length": self._started.epochs, "attempt": attempt}
        self._storage.write(trial._trial_id, entry)
        trial = self._read(number)
        self._handed.add(number)
        return TrialAttempt(number, attempt, trial.params, read_overrides(trial), read_repeat(trial))

    @property
    def _started(self) -> TrialSettings:
        if self._settings is None:
            raise RuntimeError("this ledger was opened for reading; call start() first")
        return self._settings

    @retry
    def open_trials(self) -> list[int]:
        """Numbers of the trials that have not ended."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    @retry
    def nothing_left(self) -> bool:
        """Whether no trial is open and none is to be begun."""
        return not self.open_trials() and not self._started.source.remaining(self._study)

    @fenced
    def report(self, number: int, attempt: int, epochs: Sequence[EpochResult]) -> None:
        """Record the epochs that the ledger lacks, out of a trial's whole history; one once recorded stays as it is.

        Raises:
            SupersededError: the attempt is not current, or the trial ended with fewer epochs.
            ValueError: the history has a gap.
        """
        trial = check_attempt(self._read(number), attempt)
        if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError(f"trial {number}: got epochs {[e.epoch for e in epochs]}, must be 1..{len(epochs)}")
        if trial.state.is_finished():
            if len(epochs) > (held := len(read_epochs(trial))):
                raise SupersededError(f"trial {number} has ended ({State[trial.state.name]}) at epoch {held}")
            return
        merged, lacking = merge_epochs(trial, epochs)
        self._storage.write(trial._trial_id, lacking)
        self._kept[number] = replace(read_record(trial), epochs=merged)

    @fenced
    def override(self, number: int, attempt: int, settings: Mapping[str, Any]) -> None:
        """Note settings that a trial had to change; its later starts have them too.  Raises SupersededError."""
        self._set(check_attempt(self._read(number), attempt), "overrides", dict(settings))

    @fenced
    def record_test(self, number: int, attempt: int, outcome: TestResult) -> None:
        """Note what the test split said of an open repeat.  Raises SupersededError."""
        trial = check_attempt(self._read(number), attempt)
        if not trial.state.is_finished():
            self._set(trial, "test", outcome.to_json())

    @fenced
    def should_prune(self, number: int) -> bool:
        """Whether Optuna's pruner stops the trial after its latest epoch; asked again, the answer stays the same.

        False without a pruner, before the first epoch, after the final one, at an epoch whose mIoU is not finite
        (such a trial is to fail) and for the start point; of an ended trial, whether it is PRUNED.
        """
        if not self._started.prunes:
            return False
        trial = self._read(number)
        if trial.state.is_finished():
            return bool(trial.state == TrialState.PRUNED)
        epoch = len(read_epochs(trial))
        if epoch >= self._started.epochs or epoch not in trial.intermediate_values:
            return False
        return should_prune(self._study, trial, epoch)

    @fenced
    def complete(self, number: int, attempt: int) -> None:
        """End a trial as COMPLETE with the mIoU of its selected epoch, or as FAIL if that is not finite.

        A trial that has ended stays as it ended, here and in `prune` and `fail`.  Raises SupersededError if the attempt
        is not current, ValueError if no epoch is recorded.
        """
        trial = check_attempt(self._read(number), attempt)
        epochs = read_epochs(trial)
        if not epochs:
            raise ValueError(f"trial {number}: no epoch is recorded; report its epochs before completing it")
        chosen = select_epoch(epochs, self._started.select)
        if math.isfinite(chosen.miou):
            self._end(trial, TrialState.COMPLETE, chosen.miou, selected=chosen.epoch)
        else:
            self._end(trial, TrialState.FAIL, reason=f"val/miou of epoch {chosen.epoch} is {chosen.miou}")

    @fenced
    def prune(self, number: int, attempt: int) -> None:
        """End a trial as PRUNED; raises SupersededError if the attempt is not current."""
        trial = check_attempt(self._read(number), attempt)
        self._end(trial, TrialState.PRUNED, reason=f"pruned at epoch {len(read_epochs(trial))}")

    @fenced
    def fail(self, number: int, attempt: int, reason: str) -> None:
        """End a trial as FAIL; raises SupersededError if the attempt is not current."""
        self._end(check_attempt(self._read(number), attempt), TrialState.FAIL, reason=reason)

    @fenced
    def process_died(self, number: int, attempt: int, reason: str, max_failures: int) -> bool:
        """Count the death of an attempt's process, once however often it is told.

        Returns:
            Whether the trial goes on: True if it will be asked again, or already runs under a later attempt (nothing
            is counted then); False if more than `max_failures` attempts died, which makes it FAIL with this reason, or
            if it had ended before.
        """
        trial = self._read(number)
        if trial.state.is_finished() or read_attempt(trial) != attempt:
            return not trial.state.is_finished()
        deaths = read_deaths(trial) | {str(attempt): reason}
        self._set(trial, "failures", deaths)
        if len(deaths) > max_failures:
            self._end(trial, TrialState.FAIL, reason=reason)
            return False
        self._handed.discard(number)
        return True

    @retry
    def reschedule(self, number: int, attempt: int) -> None:
        """Let an open trial be asked again, without counting a death; nothing if a later attempt is current."""
        if read_attempt(self._read(number)) == attempt:
            self._handed.discard(number)

    def _end(self, trial: FrozenTrial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        if not trial.state.is_finished():
            self._storage.write(trial._trial_id, TrialUpdate(user_attrs=facts, ending=state, value=value))

    @retry
    def trial(self, number: int) -> TrialRecord:
        """One trial as it stands, or as this process last reported it: reading takes milliseconds at every epoch."""
        return self._kept.get(number) or self._record(self._read(number))

    @retry
    def trials(self) -> list[TrialRecord]:
        """Every trial that was ever asked, by number; see `trial`."""
        return [self._record(t) for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        """The record of a trial; that of an ended one is kept, since nothing in the study can change it any more."""
        record = self._kept.get(trial.number)
        if record is None or record.state.name != trial.state.name:
            record = read_record(trial)
            if trial.state.is_finished():
                self._kept[trial.number] = record
        return record

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        """The COMPLETE trial with the highest value, the earliest of equals; None if there is none.

        Trials with overrides are left out unless the study's metadata say `allow_changed_batch`.  `among` are the
        study's trials where they have been read already.
        """
        return best_trial(self.trials() if among is None else among, self.metadata.allow_changed_batch)

    def _read(self, number: int) -> FrozenTrial:
        self._kept.pop(number, None)  # the caller may be about to change the trial
        study_id = self._study._study_id
        return self._storage.get_trial(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _set(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, key, value)


@retry
def create_study(url: str, study: str) -> None:
    """Make an Optuna study of this name, and the tables around it, unless they are there."""
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name=study, direction="maximize", load_if_exists=True)
