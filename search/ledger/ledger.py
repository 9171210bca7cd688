"""The ledger: an Optuna study that records each trial's settings, epochs and end.

It is the only record of a study, and every write may be repeated: after any crash the same calls continue.  One driver
writes (see lock.py), from one thread; `trial` and `trials` may be called from other threads at the same time.
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
from search.ledger.database import retry
from search.ledger.fencing import check_attempt, fenced
from search.ledger.lock import StudyLock
from search.ledger.records import (
    State,
    TrialAttempt,
    merge_epochs,
    read_attempt,
    read_deaths,
    read_epochs,
    read_overrides,
    read_params,
    read_record,
    read_repeat,
)
from search.ledger.sampling import build_pruner, build_sampler, should_prune
from search.ledger.storage import TrialUpdate, open_storage
from search.ledger.study_reader import StudyReader
from search.ledger.trial_source import FixedTrials, SampledTrials, TrialSettings
from search.study.plan import Repeat

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Ledger(StudyReader):
    """The ledger of one study, as its driver writes it.

    Its methods raise LedgerError if the database still fails after retries, and KeyError if a trial does not exist.
    """

    def __init__(self, url: str, study: str) -> None:
        """Open an existing study; call `start` or `start_repeats` before `next_attempt`.  See StudyReader."""
        super().__init__(url, study)
        self._settings: TrialSettings | None = None
        self._attempted: set[int] = set()

    @classmethod
    def create(cls, url: str, study: str) -> "Ledger":
        """Create the study if it does not exist, and open it.  The folder of an SQLite file must exist."""
        if not cls.exists(url, study):
            create_study(url, study)
        return cls(url, study)

    def lock(self) -> StudyLock:
        """Return the study's lock, a context manager; entering raises LockedError if another driver holds the lock.

        While the lock is held, the study is read from memory.  Trials cannot be written before or afterwards.
        """
        self._storage.lock = StudyLock(self._url, self._name)
        return self._storage.lock

    @property
    def is_locked(self) -> bool:
        """Return whether this process holds the study's lock; callable from any thread."""
        return self._storage.lock is not None and self._storage.lock.is_held()

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
        off_below: Mapping[str, float] | None = None,
    ) -> None:
        """Prepare the ledger of a search for `next_attempt`; call it once, with the lock held.

        Args:
            space: searched settings by dotted name.
            start_point: settings of trial 0 by dotted name; used if the study has no trials.
            trials: budget of the whole study, including failed trials.
            epochs: full length of a trial.
            seed: of the sampler.
            sampler, pruner: the settings of the same name in SearchConfig.
            select: `train.select`, which epoch's mIoU is the value of a trial.
            off_below: by dotted name, the suggested value below which a setting is 0; by default there are none.
        """
        off_below = off_below or {}
        known = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = build_sampler(sampler, space=space, trials=trials, seed=seed, known=known)
        self._study.pruner = build_pruner(pruner, trials, epochs)
        self._settings = TrialSettings(SampledTrials(space, trials, off_below), epochs, select, pruner != "none")
        if not known:
            # A setting that is off at the start point has its lowest value in Optuna, whose range excludes 0.
            lowest = {name: space[name].low for name in off_below if start_point[name] == 0}
            self._study.enqueue_trial(dict(start_point) | lowest)

    def start_repeats(self, repeats: Sequence[Repeat], *, epochs: int, select: str) -> None:
        """Prepare the ledger of a study of repeats for `next_attempt`; nothing is sampled, and no trial is pruned."""
        self._settings = TrialSettings(FixedTrials(repeats), epochs, select, prunes=False)

    @retry
    def next_attempt(self) -> TrialAttempt | None:
        """Record and return the next attempt of a trial; None if no trial is left to start.

        Open trials without an attempt in this run come first, lowest number first, with their recorded params; then new
        ones.  The attempt number is written to the ledger before the call returns.
        """
        source = self._started.source
        number = next((n for n in self.open_trials() if n not in self._attempted), None)
        number = source.start_next(self._study) if number is None else number
        if number is None:
            return None
        trial = self._read(number)
        update = source.suggest_params(self._study, trial)
        attempt = read_attempt(trial) + 1
        update.user_attrs |= {"length": self._started.epochs, "attempt": attempt}
        self._storage.write(trial._trial_id, update)
        trial = self._read(number)
        self._attempted.add(number)
        return TrialAttempt(number, attempt, read_params(trial), read_overrides(trial), read_repeat(trial))

    @property
    def _started(self) -> TrialSettings:
        if self._settings is None:
            raise RuntimeError("this ledger was opened for reading; call start() first")
        return self._settings

    @retry
    def nothing_left(self) -> bool:
        """Return whether no trial is open and no new trial will be started."""
        return not self.open_trials() and not self._started.source.remaining(self._study)

    @fenced
    def report(self, number: int, attempt: int, epochs: Sequence[EpochResult]) -> None:
        """Record the epochs that the ledger lacks; a recorded epoch is never changed.

        Args:
            number, attempt: of the trial.
            epochs: all epochs of the trial up to now, from epoch 1.

        Raises:
            SupersededError: the attempt is not current, or the trial ended with fewer epochs.
            ValueError: the history has a gap.
        """
        trial = check_attempt(self._read(number), attempt)
        if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError(f"trial {number}: got epochs {[e.epoch for e in epochs]}, must be 1..{len(epochs)}")
        if trial.state.is_finished():
            if len(epochs) > (recorded := len(read_epochs(trial))):
                raise SupersededError(f"trial {number} has ended ({State[trial.state.name]}) at epoch {recorded}")
            return
        merged, update = merge_epochs(trial, epochs)
        self._storage.write(trial._trial_id, update)
        self._records[number] = replace(read_record(trial), epochs=merged)

    @fenced
    def override(self, number: int, attempt: int, settings: Mapping[str, Any]) -> None:
        """Record settings that were changed after an out-of-memory error, for later attempts of the trial too.

        Raises SupersededError if the attempt is not current.
        """
        self._set(check_attempt(self._read(number), attempt), "overrides", dict(settings))

    @fenced
    def record_test(self, number: int, attempt: int, result: TestResult) -> None:
        """Record the result of an open repeat on the test split; does nothing if the trial has ended.

        Raises SupersededError if the attempt is not current.
        """
        trial = check_attempt(self._read(number), attempt)
        if not trial.state.is_finished():
            self._set(trial, "test", result.to_json())

    @fenced
    def should_prune(self, number: int) -> bool:
        """Return whether Optuna's pruner stops the trial after its latest epoch; a repeated call returns the same.

        Returns:
            False without a pruner, before the first epoch, after the last one, for trial 0, and at an epoch whose mIoU
            is not finite, since such a trial fails.  For an ended trial: whether it is PRUNED.
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
        """End a trial as COMPLETE with the mIoU of its selected epoch, or as FAIL if this mIoU is not finite.

        `complete`, `prune` and `fail` do not change a trial that has already ended.

        Raises:
            SupersededError: the attempt is not current.
            ValueError: no epoch is recorded.
        """
        trial = check_attempt(self._read(number), attempt)
        epochs = read_epochs(trial)
        if not epochs:
            raise ValueError(f"trial {number}: no epoch is recorded; report its epochs before completing it")
        selected = select_epoch(epochs, self._started.select)
        if math.isfinite(selected.miou):
            self._end(trial, TrialState.COMPLETE, selected.miou, selected=selected.epoch)
        else:
            self._end(trial, TrialState.FAIL, reason=f"val/miou of epoch {selected.epoch} is {selected.miou}")

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
        """Record the death of an attempt's process; a repeated call for the same attempt is not counted again.

        A trial becomes FAIL with this reason once more than `max_failures` of its attempts have died.

        Returns:
            True if `next_attempt` will start the trial again, or a later attempt is already current, which makes the
            call do nothing.  False if the trial has ended.
        """
        trial = self._read(number)
        if trial.state.is_finished() or read_attempt(trial) != attempt:
            return not trial.state.is_finished()
        deaths = read_deaths(trial) | {str(attempt): reason}
        self._set(trial, "failures", deaths)
        if len(deaths) > max_failures:
            self._end(trial, TrialState.FAIL, reason=reason)
            return False
        self._attempted.discard(number)
        return True

    @retry
    def reschedule(self, number: int, attempt: int) -> None:
        """Let `next_attempt` start an open trial again without counting a death; does nothing for an old attempt."""
        if read_attempt(self._read(number)) == attempt:
            self._attempted.discard(number)

    def _end(self, trial: FrozenTrial, state: TrialState, value: float | None = None, **user_attrs: Any) -> None:
        if not trial.state.is_finished():
            self._storage.write(trial._trial_id, TrialUpdate(user_attrs=user_attrs, ending=state, value=value))

    def _set(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, key, value)


@retry
def create_study(url: str, study: str) -> None:
    """Create the tables of Optuna and a study of this name, if they do not exist."""
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name=study, direction="maximize", load_if_exists=True)
