"""The ledger: records each trial's settings, attempts, epochs and end in plain tables (see tables.py).

It is the only record of a study, and every write may be repeated: after any crash the same calls continue.  Each write
is one transaction, which stores nothing if another driver has taken the study or the trial (see transaction.py).  One
driver writes, from one thread.
"""

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import insert

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult, SupersededError, select_epoch
from search.ledger.database import opened, retry, study_id
from search.ledger.lock import StudyLock
from search.ledger.metadata_writer import MetadataWriter
from search.ledger.records import EpochEvent, State, TrialAttempt, TrialRecord
from search.ledger.tables import FORMAT, STUDIES, TABLES
from search.ledger.transaction import Transaction
from search.ledger.trial_source import NewTrial, TrialSettings, TrialSource
from search.study.objective import DEFAULT, value_of


class Ledger(MetadataWriter):
    """The ledger of one study, as its driver writes it.

    Its methods raise LedgerError if the database still fails after retries, KeyError if a trial does not exist, and
    SupersededError if another driver has taken the study, or if a trial has a later attempt.
    """

    def __init__(self, url: str, study: str) -> None:
        """Open an existing study; call `start` before `next_attempt`.  See StudyReader."""
        super().__init__(url, study)
        self._settings: TrialSettings | None = None
        self._attempted: set[int] = set()

    @classmethod
    def create(cls, url: str, study: str) -> "Ledger":
        """Create the study if it does not exist, and open it.  The folder of an SQLite file must exist."""
        create_study(url, study)
        return cls(url, study)

    def lock(self) -> StudyLock:
        """Return the study's lock, a context manager; entering raises LockedError if another driver holds the lock.

        While the lock is held, the study is read from memory; afterwards nothing can be written.
        """
        self._lock = StudyLock(self._engine, self._study, self._name)
        return self._lock

    def start(self, source: TrialSource, *, epochs: int, select: str, objectives: Sequence[str] = DEFAULT) -> None:
        """Prepare the ledger for `next_attempt`; call it once, with the lock held.

        Args:
            source: chooses the trials.
            epochs: full length of a trial.
            select: `train.select`, which epoch's metrics are the values of a trial.
            objectives: names of the metrics that are maximised; the first one is the value of a trial.
        """
        self._settings = TrialSettings(source, epochs, select, objectives)

    @property
    def _started(self) -> TrialSettings:
        if self._settings is None:
            raise RuntimeError("this ledger was opened for reading; call start() first")
        return self._settings

    def nothing_left(self, fits: Callable[[int], bool] = lambda epochs: True) -> bool:
        """Return whether no open trial can be continued and no new trial will be started.

        Args:
            fits: whether there is time for this many epochs of a trial; by default always.
        """
        started, records = self._started, self.trials()
        may_continue = any(r.is_open and fits(started.epochs - len(r.epochs)) for r in records)
        return not may_continue and not (started.source.remaining(records) and fits(started.epochs))

    @retry
    def next_attempt(self, fits: Callable[[int], bool] = lambda epochs: True) -> TrialAttempt | None:
        """Record and return the next attempt of a trial; None if no trial is left to start.

        Open trials without an attempt in this run come first, lowest number first, with their recorded params; then new
        ones.  The attempt is in the ledger before the call returns.

        Args:
            fits: whether there is time for this many epochs of a trial; a trial that does not fit is not started.
        """
        started, records = self._started, self.trials()
        open_ones = (r for r in records if r.is_open and r.number not in self._attempted)
        waiting = next((r for r in open_ones if fits(started.epochs - len(r.epochs))), None)
        if waiting is not None:
            with self._write() as write:
                write.change_trial(waiting, attempt=waiting.attempt + 1, length=started.epochs)
        elif fits(started.epochs) and (new := started.source.next_trial(records)) is not None:
            with self._write() as write:
                write.add_trial(first_attempt(len(records), new, started.epochs, write.seq))
        else:
            return None
        (record,) = write.changed.values()
        self._attempted.add(record.number)
        return TrialAttempt(
            record.number, record.attempt, record.params, record.overrides, record.given_seed, record.schedule
        )

    @retry
    def report(self, number: int, attempt: int, epochs: Sequence[EpochResult]) -> None:
        """Record the epochs that the ledger lacks; a recorded epoch is never changed.

        Args:
            number, attempt: of the trial.
            epochs: all epochs of the trial up to now, from epoch 1.

        Raises:
            SupersededError: the attempt is not current, or the trial ended with fewer epochs.
            ValueError: the history has a gap.
        """
        record = self._current(number, attempt)
        if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError(f"trial {number}: got epochs {[e.epoch for e in epochs]}, must be 1..{len(epochs)}")
        new = epochs[len(record.epochs) :]
        if new and not record.is_open:
            raise SupersededError(f"trial {number} has ended ({record.state}) at epoch {len(record.epochs)}")
        if not new:
            return
        with self._write() as write:
            events = (*record.epoch_events, *(EpochEvent(write.seq, attempt) for _ in new))
            write.change_trial(record, epochs=[*record.epochs, *new], epoch_events=events)
            for epoch in new:
                write.add_epoch(number, attempt, epoch)

    @retry
    def override(self, number: int, attempt: int, settings: Mapping[str, Any]) -> None:
        """Record settings that were changed after an out-of-memory error, for later attempts of the trial too.

        Does nothing if the trial has ended; raises SupersededError if the attempt is not current.
        """
        self._change(self._current(number, attempt), overrides=dict(settings))

    @retry
    def record_test(self, number: int, attempt: int, result: TestResult) -> None:
        """Record the result of an open repeat on the test split.

        Does nothing if the trial has ended; raises SupersededError if the attempt is not current.
        """
        self._change(self._current(number, attempt), test=result)

    @retry
    def should_prune(self, number: int) -> bool:
        """Return whether the source stops the trial after its latest epoch, and record the decision.

        A recorded decision is returned again.

        Returns:
            False before the first epoch, after the last one, and at an epoch whose value is not finite, since such a
            trial fails.  For an ended trial: whether it is PRUNED.
        """
        source, record = self._started.source, self.trial(number)
        if not source.prunes or not record.is_open:
            return record.state is State.PRUNED
        epoch = len(record.epochs)
        if not 0 < epoch < self._started.epochs or not math.isfinite(self._value(record.epochs[-1])):
            return False
        event = record.epoch_events[-1]
        if event.stop is not None:
            return event.stop
        stop = source.should_prune(self.trials(), number)
        with self._write() as write:
            event = replace(event, stop=stop, stop_seq=write.seq)
            write.change_trial(record, epoch_events=(*record.epoch_events[:-1], event))
            write.add_decision(number, epoch, stop)
        return stop

    @retry
    def complete(self, number: int, attempt: int) -> None:
        """End a trial as COMPLETE with the objectives of its selected epoch, or as FAIL if one of them is not finite.

        `complete`, `prune` and `fail` do not change a trial that has already ended.

        Raises:
            SupersededError: the attempt is not current.
            ValueError: no epoch is recorded.
        """
        record = self._current(number, attempt)
        if not record.epochs:
            raise ValueError(f"trial {number}: no epoch is recorded; report its epochs before completing it")
        selected = select_epoch(record.epochs, self._started.select)
        values = {name: value_of(selected, name) for name in self._started.objectives}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is None:
            self._end(record, State.COMPLETE, value=self._value(selected), selected=selected.epoch)
        else:
            self._end(record, State.FAIL, reason=f"{broken} of epoch {selected.epoch} is {values[broken]}")

    @retry
    def prune(self, number: int, attempt: int) -> None:
        """End a trial as PRUNED; raises SupersededError if the attempt is not current."""
        record = self._current(number, attempt)
        self._end(record, State.PRUNED, reason=f"pruned at epoch {len(record.epochs)}")

    @retry
    def fail(self, number: int, attempt: int, reason: str) -> None:
        """End a trial as FAIL; raises SupersededError if the attempt is not current."""
        self._end(self._current(number, attempt), State.FAIL, reason=reason)

    @retry
    def process_died(self, number: int, attempt: int, reason: str, max_failures: int) -> bool:
        """Record the death of an attempt's process; a repeated call for the same attempt is not counted again.

        A trial becomes FAIL with this reason once more than `max_failures` of its attempts have died.

        Returns:
            True if `next_attempt` will start the trial again, or a later attempt is already current, which makes the
            call do nothing.  False if the trial has ended.
        """
        record = self.trial(number)
        if not record.is_open or record.attempt != attempt:
            return record.is_open
        is_last = record.failures + 1 > max_failures
        with self._write() as write:
            if not write.add_failure(number, attempt, reason):
                is_last = False  # recorded by a call whose answer was lost
            elif is_last:
                write.change_trial(record, failures=record.failures + 1, reason=reason, **ending(write, State.FAIL))
            else:
                write.change_trial(record, failures=record.failures + 1)
        if not is_last:
            self._attempted.discard(number)
        return not is_last

    def reschedule(self, number: int, attempt: int) -> None:
        """Let `next_attempt` start an open trial again without counting a death; does nothing for an old attempt."""
        if self.trial(number).attempt == attempt:
            self._attempted.discard(number)

    def _value(self, epoch: EpochResult) -> float:
        """Return the value that a trial would have with this epoch."""
        return value_of(epoch, self._started.objectives[0])

    def _current(self, number: int, attempt: int) -> TrialRecord:
        """Return the record of a trial; raises SupersededError unless `attempt` is its latest."""
        record = self.trial(number)
        if attempt != record.attempt:
            raise SupersededError(f"trial {number}: attempt {attempt} is superseded by {record.attempt}")
        return record

    def _change(self, record: TrialRecord, **fields: Any) -> None:
        """Change fields of a trial, unless it has ended."""
        if record.is_open:
            with self._write() as write:
                write.change_trial(record, **fields)

    def _end(self, record: TrialRecord, state: State, **fields: Any) -> None:
        """End a trial, unless it has ended."""
        if record.is_open:
            with self._write() as write:
                write.change_trial(record, **ending(write, state), **fields)


def ending(write: Transaction, state: State) -> dict[str, Any]:
    """Return the fields that every ended trial gets."""
    return {"state": state, "ended": time.time(), "ended_seq": write.seq}


def first_attempt(number: int, new: NewTrial, length: int, seq: int) -> TrialRecord:
    """Return the record of a trial that is started for the first time."""
    return TrialRecord(
        number=number,
        state=State.RUNNING,
        params=new.params,
        attempt=1,
        failures=0,
        epochs=[],
        value=None,
        reason=None,
        started=time.time(),
        ended=None,
        repeat=new.repeat,
        length=length,
        origin=new.origin,
        context=new.context,
        seq=seq,
        asked_seq=seq,
    )


@retry
def create_study(url: str, study: str) -> None:
    """Create the tables and a study of this name, if they do not exist."""
    if study_id(url, study) is not None:
        return
    with opened(url) as engine:
        TABLES.create_all(engine)
        row = {"name": study, "uid": uuid.uuid4().hex, "format": FORMAT, "metadata": {}, "seq": 0}
        with engine.begin() as connection:
            connection.execute(insert(STUDIES).values(row))
