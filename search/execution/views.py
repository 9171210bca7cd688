"""The views of a study while it runs: MLflow, Optuna's dashboard and the report, written in the background."""

from rich.console import Console

from search.cli.signals import Signals
from search.console.run_summary import study_command
from search.execution.stop_reason import StopReason
from search.execution.strategies import Strategy
from search.execution.trial_events import TrialListener
from search.ledger.ledger import Ledger
from search.report.background import ReportWriter
from search.report.build import is_current
from search.study.location import public_address
from search.tracking.optuna_studies import OptunaTracker, can_show
from search.tracking.precedence import Precedence
from search.tracking.tracker import Tracker

CLOSING_S = 30.0
"""Seconds that the end of a run waits for MLflow; creating its database takes ten on a busy machine."""
INTERRUPTED_CLOSING_S = 3.0
"""The same after a signal, which must be acted on within ten."""


class StudyViews:
    """Starts the views, and closes them at the end of a run.

    Args:
        strategy: whose study is shown.
        ledger: locked by this process; read by the views from their own threads and processes.
        console: shows what is waited for.

    Attributes:
        precedence: for the events of the driver.
    """

    def __init__(self, strategy: Strategy, ledger: Ledger, console: Console):
        self.plan, self.ledger, self.console = strategy.plan, ledger, console
        self.precedence = Precedence()
        self.tracker = Tracker(ledger, self.plan.location, ledger.metadata, self.precedence.pause)
        self.tracker.start()
        shows = can_show(self.plan.location)
        self.optuna = (
            OptunaTracker(ledger, self.plan.location, ledger.metadata, self.precedence.pause) if shows else None
        )
        if self.optuna:
            self.optuna.start()
        self.report = self._report_writer() if strategy.writes_report else None
        self.warnings: list[str] = []

    def _report_writer(self) -> ReportWriter:
        """Return the writer of the report."""
        store = self.plan.location.report_store
        ledger, publish = self.ledger, self.tracker.publish
        return ReportWriter(
            self.plan.location, publish, is_current=lambda: is_current(store, ledger.trials(), ledger.best())
        )

    @property
    def listeners(self) -> list[TrialListener]:
        """Return the views that are notified of every change of a trial."""
        return [listener for listener in (self.tracker, self.optuna, self.report) if listener is not None]

    def close(self, reason: StopReason | None, signals: Signals) -> None:
        """Finish the report and MLflow's runs; neither where another driver has taken the study over.

        Args:
            reason: why the run ended; None after an exception, which leaves the report as it is.
            signals: a signal ends waiting for the report.
        """
        interrupted = reason is not None and reason.is_signal
        if self.report is not None:
            try:
                if self.ledger.is_locked and reason is not None and not interrupted:
                    self._finish_report(self.report, signals)
            finally:
                self.report.stop()
        if not self.ledger.is_locked:
            if self.optuna:
                self.optuna.abandon()
            return self.tracker.abandon()
        limit_s = INTERRUPTED_CLOSING_S if interrupted else CLOSING_S
        if self.optuna:
            self.optuna.stop(limit_s, interrupted=interrupted)
        if not self.tracker.stop(limit_s, interrupted=interrupted):
            address, command = public_address(self.plan.location.tracking_uri), study_command(self.plan, "search.sync")
            self.warnings.append(f"MLflow at {address} lacks results, which this sends: {command}")

    def _finish_report(self, report: ReportWriter, signals: Signals) -> None:
        """Write the report with its pictures of frames."""
        with self.console.status("writing the report"):
            failure = report.finish(lambda: bool(signals.received))
        if failure:
            self.warnings.append(f"the report could not be written: {failure}")

    def print_warnings(self) -> None:
        """Print what could not be written."""
        for text in self.warnings:
            self.print_line(f"warning: {text}")

    def print_line(self, text: str) -> None:
        """Print one line as it stands."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)
