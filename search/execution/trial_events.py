"""Between Ray's trials and the ledger's: who works on what, and what each event means for the books."""

import logging
from collections import Counter
from collections.abc import Callable

from fgseg.results import SupersededError
from search.execution.messages import TrialReport
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialAttempt

MAX_NODE_LOSSES = 5
"""How many nodes may die under a trial before their deaths count as its own: it may be what kills them."""

log = logging.getLogger(__name__)


class TrialEventHandler:
    """Enters every event of a run into the ledger; raises nothing, a fault that must end the run is kept in `fault`.

    Args:
        ledger: held by this process.
        epochs: a trial's full length.
        max_failures: how often a trial whose process died is started again.
        max_failed_trials: trials that may fail one after the other before the run stops.
        notify: called with the number of every trial that changed.
        note: called with the number of a trial and something that a person should know.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        epochs: int,
        max_failures: int,
        max_failed_trials: int,
        notify: Callable[[int], None],
        note: Callable[[int, str], None],
    ):
        self.ledger, self.epochs = ledger, epochs
        self.max_failures, self.max_failed_trials = max_failures, max_failed_trials
        self.notify, self.note = notify, note
        self.live: dict[str, TrialAttempt] = {}
        self.node_losses: Counter[int] = Counter()
        self.noted: set[tuple[int, str]] = set()
        self.failed_in_a_row = 0
        self.stop_reason: str | None = None

    def next_attempt(self, trial_id: str) -> TrialAttempt | None:
        """The next start of a trial for Ray's `trial_id`, or None where there is none now."""
        if self.stop_reason:
            return None
        try:
            ask = self.ledger.next_attempt()
            if ask is not None:
                self.live[trial_id] = ask
                self.notify(ask.number)
            return ask
        except (LedgerError, SupersededError) as error:
            self.stop_reason = str(error)
            return None

    def on_report(self, trial_id: str, report: TrialReport) -> bool:
        """Enter a report; returns whether the trial shall be stopped."""
        ask = self.live[trial_id]
        self._forward_notes(report)
        if report.fatal_error:
            self.stop_reason = f"trial {ask.number}: {report.fatal_error}; mend that, then run the same command again"
            return True
        try:
            self._record(ask, report)
            self.notify(ask.number)
            return len(report.epochs) < self.epochs and self.ledger.should_prune(ask.number)
        except SupersededError:
            return True
        except LedgerError as error:
            self.stop_reason = str(error)
            return True

    def on_trial_end(self, trial_id: str, report: TrialReport | None, died: bool) -> None:
        """Enter the end of a trial: finished, pruned, failed, or dead and to be asked again.

        Without a report and not dead it was stopped before it said anything, and stays open; as it does once a fault
        ends the run.
        """
        ask = self.live.pop(trial_id, None)
        if ask is None or self.stop_reason:
            return
        try:
            if died:
                self.ledger.process_died(
                    ask.number, ask.attempt, f"its process died (start {ask.attempt})", self.max_failures
                )
            elif report is not None:
                self._finish_trial(ask, report)
            self._count_failures(ask.number)
            self.notify(ask.number)
        except SupersededError as error:
            log.info("trial %d: %s", ask.number, error)
        except LedgerError as error:
            self.stop_reason = str(error)
        except Exception as error:  # Ray would swallow it, and the trial stay open
            self.stop_reason = f"trial {ask.number}: {type(error).__name__}: {error}; run the same command again"

    def on_node_lost(self, trial_id: str) -> None:
        """Let a trial be asked again whose node died: that counts for nothing, unless it happens again and again."""
        ask = self.live.get(trial_id)
        if ask is None or self.stop_reason:
            return
        if self.lost_too_many_nodes(ask):
            return self.on_trial_end(trial_id, None, died=True)
        del self.live[trial_id]
        try:
            self.ledger.reschedule(ask.number, ask.attempt)
        except LedgerError as error:
            self.stop_reason = str(error)

    def lost_too_many_nodes(self, ask: TrialAttempt) -> bool:
        """Count a start that ended through no fault of the trial's; whether it may no longer be that."""
        self.node_losses[ask.number] += 1
        return self.node_losses[ask.number] > MAX_NODE_LOSSES

    def _finish_trial(self, ask: TrialAttempt, report: TrialReport) -> None:
        """Enter the end of a trial whose function returned or was stopped by the pruner.

        One that returned before its end gave way to a later start that its folder knows of and the ledger does not,
        say since it was restored from a backup: the trial is asked again, until its number is past that.
        """
        self._record(ask, report)
        if report.error is not None:
            self.ledger.fail(ask.number, ask.attempt, report.error)
        elif len(report.epochs) >= self.epochs:
            self.ledger.complete(ask.number, ask.attempt)
        elif self.ledger.should_prune(ask.number):
            self.ledger.prune(ask.number, ask.attempt)
        elif self.lost_too_many_nodes(ask):
            self.ledger.process_died(ask.number, ask.attempt, "its folder belongs to a later start", self.max_failures)
        else:
            self.ledger.reschedule(ask.number, ask.attempt)

    def _record(self, ask: TrialAttempt, report: TrialReport) -> None:
        """Bring the ledger up to a report; repeating it changes nothing.

        A report holds what this start changed, the ask what earlier ones did.
        """
        if report.overrides and report.overrides != ask.overrides:
            self.ledger.override(ask.number, ask.attempt, report.overrides)
        self.ledger.report(ask.number, ask.attempt, report.epochs)
        if report.test is not None:
            self.ledger.record_test(ask.number, ask.attempt, report.test)

    def _count_failures(self, number: int) -> None:
        """Stop the run after too many failures in a row: what breaks them all would burn the whole budget."""
        record = self.ledger.trial(number)
        if record.state is State.FAIL:
            self.failed_in_a_row += 1
        elif record.state is not State.RUNNING:
            self.failed_in_a_row = 0
        if self.failed_in_a_row >= self.max_failed_trials:
            self.stop_reason = (
                f"{self.failed_in_a_row} trials failed in a row, the last one since: {record.reason}; "
                "mend that, then run the same command again (--max-failed-trials allows more)"
            )

    def _forward_notes(self, report: TrialReport) -> None:
        """Hand each note of a trial to people once."""
        for text in report.notes:
            if (report.number, text) not in self.noted:
                self.noted.add((report.number, text))
                self.note(report.number, text)
