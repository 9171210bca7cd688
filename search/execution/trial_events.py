"""Record each event of a trial in the ledger, and notify the listeners.

| event of Ray Tune | ledger | state in MLflow |
|---|---|---|
| asks for a trial | `next_attempt`: attempt number, params | RUNNING |
| report of a trial | `report`, `override`, `record_test`; `should_prune` decides | RUNNING, new points |
| the trial returned after its last epoch | `complete` (`fail` where the mIoU is not finite) | FINISHED (FAILED) |
| the trial was stopped by the pruner | `prune` | KILLED, tag `fgseg.pruned` |
| the trial was stopped since the time is used up | nothing: it stays open | RUNNING, at the end KILLED |
| the trial reported an error | `fail` | FAILED, tag `fgseg.reason` |
| its process died, or met a fault of its GPU | `process_died`: again, or FAIL (`max_failures`) | RUNNING (FAILED) |
| its node died | `reschedule`, not counted up to MAX_NODE_LOSSES | RUNNING |
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from fgseg.results import SupersededError
from search.execution.messages import TrialReport
from search.execution.time_budget import TimeBudget
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialAttempt, TrialRecord
from search.study.config import SearchConfig

MAX_NODE_LOSSES = 5
"""Nodes that may die under one trial before their deaths count as the trial's own failures: it may cause them."""

log = logging.getLogger(__name__)


class StopRunError(Exception):
    """A fault that ends the run, as one line: what happened and what to do.  The open trials stay open."""


class TrialListener(Protocol):
    """Is notified of every change of a trial after the ledger has recorded it; called from the driver's main thread.

    An OSError ends the run.
    """

    def on_attempt(self, record: TrialRecord) -> None:
        """Handle the start of an attempt of a trial."""

    def on_epoch(self, record: TrialRecord) -> None:
        """Handle a change of an open trial: an epoch, a test result, a death of its process."""

    def on_trial_end(self, record: TrialRecord) -> None:
        """Handle the end of a trial: complete, pruned or failed."""

    def on_note(self, number: int | None, text: str) -> None:
        """Handle a message for people about a trial, or with None about the run."""


class TrialEventHandler:
    """Records every event of a run in the ledger, and notifies the listeners.

    Every method may raise StopRunError.  None may be called after that.

    Args:
        ledger: locked by this process and prepared for `next_attempt`.
        epochs: a trial's full length.
        search: its `max_failures`, `max_failed_trials`, `max_hours` and `max_gpu_hours`.
        listeners: notified in this order.
        precedence: given to every event.
    """

    def __init__(
        self,
        ledger: Ledger,
        epochs: int,
        search: SearchConfig,
        listeners: Sequence[TrialListener],
        precedence: AbstractContextManager[None] | None = None,
    ):
        self.ledger, self.epochs, self.listeners = ledger, epochs, listeners
        self.precedence = precedence or nullcontext()
        self.max_failures, self.max_failed_trials = search.max_failures, search.max_failed_trials
        self.live: dict[str, TrialAttempt] = {}
        self.time = TimeBudget(search, ledger, self.live)
        self.node_losses: Counter[int] = Counter()
        self.process_errors: dict[int, str] = {}
        self.noted: set[tuple[int, str]] = set()
        self.failed_in_a_row = 0

    def next_attempt(self, trial_id: str) -> TrialAttempt | None:
        """Return the next attempt of a trial for Ray's `trial_id`, or None where there is none now."""
        try:
            with self.precedence, stopping_on_faults():
                trial = self.ledger.next_attempt(self.time.fits)
                if trial is not None:
                    self.live[trial_id] = trial
                    record = self.ledger.trial(trial.number)
                    for listener in self.listeners:
                        listener.on_attempt(record)
                return trial
        except SupersededError as error:  # another driver has taken the study over
            raise StopRunError(str(error)) from error

    def on_report(self, trial_id: str, report: TrialReport) -> bool:
        """Record a report; returns whether the trial shall be stopped."""
        trial = self.live[trial_id]
        self._forward_notes(report)
        if report.process_error:
            self.process_errors[trial.number] = report.process_error
        if report.fatal_error:
            text = f"trial {trial.number}: {report.fatal_error}; fix that, then run the same command again"
            raise StopRunError(text)
        try:
            with self.precedence, stopping_on_faults():
                self._record(trial, report)
                self._notify(trial.number)
                if len(report.epochs) >= self.epochs:
                    return False
                return self.ledger.should_prune(trial.number) or self.time.is_used_up()
        except SupersededError:
            return True

    def on_trial_end(self, trial_id: str, report: TrialReport | None, died: bool) -> None:
        """Record the end of a trial: complete, pruned, failed, or its process died.

        A trial without a report that did not die was stopped before its first report, and stays open.
        """
        trial = self.live.pop(trial_id, None)
        if trial is None:
            return
        try:
            with self.precedence, stopping_on_faults():
                if died:
                    reason = f"its process died (attempt {trial.attempt})"
                    if cause := self.process_errors.pop(trial.number, None):
                        reason += f": {cause}"
                    self.ledger.process_died(trial.number, trial.attempt, reason, self.max_failures)
                elif report is not None:
                    self._finish_trial(trial, report)
                self._notify(trial.number)
                self._count_failures(trial.number)
        except SupersededError as error:
            log.info("trial %d: %s", trial.number, error)
        except StopRunError:
            raise
        except Exception as error:  # Ray Tune would swallow it, and the trial would stay open
            text = f"trial {trial.number}: {type(error).__name__}: {error}; run the same command again"
            raise StopRunError(text) from error

    def on_node_lost(self, trial_id: str) -> None:
        """Reschedule a trial whose node died.  Not counted as a failure until MAX_NODE_LOSSES is exceeded."""
        trial = self.live.get(trial_id)
        if trial is None:
            return
        if self._lost_too_many_nodes(trial):
            return self.on_trial_end(trial_id, None, died=True)
        del self.live[trial_id]
        self.process_errors.pop(trial.number, None)
        with self.precedence, stopping_on_faults():
            self.ledger.reschedule(trial.number, trial.attempt)

    def note(self, text: str) -> None:
        """Forward something about the run as a whole, such as a node that joined."""
        for listener in self.listeners:
            listener.on_note(None, text)

    def _lost_too_many_nodes(self, trial: TrialAttempt) -> bool:
        """Count an attempt that ended through no fault of the trial; returns whether MAX_NODE_LOSSES is exceeded."""
        self.node_losses[trial.number] += 1
        return self.node_losses[trial.number] > MAX_NODE_LOSSES

    def _finish_trial(self, trial: TrialAttempt, report: TrialReport) -> None:
        """Record the end of a trial whose function returned or was stopped.

        A function that returned early found a later attempt in the trial's folder which the ledger does not know,
        for example because the ledger was restored from a backup.  The trial is rescheduled until its attempt number
        is past that one.
        """
        self._record(trial, report)
        if report.error is not None:
            self.ledger.fail(trial.number, trial.attempt, report.error)
        elif len(report.epochs) >= self.epochs:
            self.ledger.complete(trial.number, trial.attempt)
        elif self.ledger.should_prune(trial.number):
            self.ledger.prune(trial.number, trial.attempt)
        elif self.time.is_used_up():
            return  # the trial stays open, and is continued by a run with more time
        elif self._lost_too_many_nodes(trial):
            reason = "its folder belongs to a later attempt"
            self.ledger.process_died(trial.number, trial.attempt, reason, self.max_failures)
        else:
            self.ledger.reschedule(trial.number, trial.attempt)

    def _record(self, trial: TrialAttempt, report: TrialReport) -> None:
        """Bring the ledger up to a report; repeating it changes nothing."""
        if report.overrides and report.overrides != trial.overrides:
            self.ledger.override(trial.number, trial.attempt, report.overrides)
        self.ledger.report(trial.number, trial.attempt, report.epochs)
        if report.test is not None:
            self.ledger.record_test(trial.number, trial.attempt, report.test)

    def _notify(self, number: int) -> None:
        """Notify the listeners of a trial's record as the ledger now has it."""
        record = self.ledger.trial(number)
        for listener in self.listeners:
            (listener.on_epoch if record.ended is None else listener.on_trial_end)(record)

    def _count_failures(self, number: int) -> None:
        """Raise StopRunError after `max_failed_trials` failures in a row, which would use up the whole budget."""
        record = self.ledger.trial(number)
        if record.state is State.FAIL:
            self.failed_in_a_row += 1
        elif not record.is_open:
            self.failed_in_a_row = 0
        if self.failed_in_a_row >= self.max_failed_trials:
            raise StopRunError(
                f"{self.failed_in_a_row} trials failed in a row, the last one since: {record.reason}; "
                "fix that, then run the same command again (--max-failed-trials allows more)"
            )

    def _forward_notes(self, report: TrialReport) -> None:
        """Forward each note of a trial once."""
        for text in report.notes:
            if (report.number, text) not in self.noted:
                self.noted.add((report.number, text))
                for listener in self.listeners:
                    listener.on_note(report.number, text)


@contextmanager
def stopping_on_faults() -> Iterator[None]:
    """Raise StopRunError for a ledger or a disk that fails."""
    try:
        yield
    except LedgerError as error:
        raise StopRunError(str(error)) from error
    except OSError as error:
        raise StopRunError(f"{error}; fix that, then run the same command again") from error
