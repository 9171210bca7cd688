"""Show the progress of a run: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from search.console.forecast import FORECAST_TRIALS, Forecast, clock, forecast_line, time_lines
from search.console.study_status import StudyStatus, time_left
from search.console.trial_table import trial_table
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.ledger.time_used import time_used

FORECAST_EVERY_S = 1.0
"""Seconds for which a forecast is shown: to compute it takes milliseconds in a study of thousands of trials."""
REFRESH_EVERY_S = 0.5
"""Seconds between two refreshes of the live table."""
SUMMARY_EVERY_S = 60.0
"""Seconds between two summary lines where there is no live table."""
OTHER_LINES = 10
"""Lines of a terminal that are kept for what the live table shows besides the running trials."""


class Progress:
    """Shows the running trials on a terminal, every end of a trial, and an estimate of the time left.

    A context manager and a `TrialListener`; for the driver's main thread only, which also refreshes the live table, so
    that the table never shows a change by half.

    Args:
        console: prints the lines, or the live table if it is a terminal.
        metadata: the study's budget, and the epochs of a trial.
        records: every trial of the ledger at the start.
        mlflow: address or command to view the study in MLflow.
        verbose: whether to print the start and every epoch of a trial.
        monotonic: returns the time in seconds; by default `time.monotonic`.
    """

    def __init__(
        self,
        console: Console,
        metadata: StudyMetadata,
        records: list[TrialRecord],
        mlflow: str,
        *,
        verbose: bool = False,
        monotonic: Callable[[], float] | None = None,
    ):
        self.console, self.mlflow, self.verbose = console, mlflow, verbose
        self.monotonic = monotonic or time.monotonic
        self.status = StudyStatus(metadata, records)
        self.started = self.monotonic()
        self.expected: Forecast | None = None
        self.forecast_due = 0.0
        self.refresh_due = 0.0
        self.summary_due = self.started + SUMMARY_EVERY_S
        self.has_news = False
        self.done_before = self.status.epochs_done
        self.live = (
            Live(console=console, get_renderable=self.view, auto_refresh=False, transient=True)
            if console.is_interactive
            else None
        )

    def __enter__(self) -> "Progress":
        self._print_line(f"MLflow: {self.mlflow}")
        if self.live:
            self.live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
            if self.has_news:
                self._print_line(f"{self.elapsed()}  {self.line()}")

    def on_attempt(self, record: TrialRecord) -> None:
        """Print the continuation of a trial, and with `verbose` its start."""
        self._update(record, is_shown=self.verbose or record.attempt > 1)

    def on_epoch(self, record: TrialRecord) -> None:
        """Print a new epoch with `verbose`."""
        self._update(record, is_shown=self.verbose)

    def on_trial_end(self, record: TrialRecord) -> None:
        """Print the end of a trial, and the first forecast of the study's end."""
        had_forecast = len(self.status.ended) >= FORECAST_TRIALS
        self._update(record, is_shown=True)
        if not had_forecast and (expected := self.status.forecast(time.time())) is not None:
            self._print_line(f"{self.elapsed()}  {forecast_line(self.status.metadata, expected)}")

    def on_note(self, number: int | None, text: str) -> None:
        """Print a note of a trial, or with None of the run, such as a warning of a worker."""
        about = "" if number is None else f"trial {number:03d}  note: "
        self._print_line(f"{self.elapsed()}  {about}{text}")

    def refresh(self) -> None:
        """Refresh the live table, or print the summary, if that is due; called several times a second."""
        now = self.monotonic()
        if self.live and now >= self.refresh_due:
            self.refresh_due = now + REFRESH_EVERY_S
            self.live.refresh()
        elif not self.live and now >= self.summary_due:
            self.summary_due = now + SUMMARY_EVERY_S
            if self.has_news or self.status.running:
                self._print_line(self.summary())
            self.has_news = False

    def _update(self, record: TrialRecord, is_shown: bool) -> None:
        """Take a trial's new record into account, and print what has changed if it is shown."""
        best = self.status.best
        before = self.status.update(record)
        text = event(before, record, self.status.metadata.epochs)
        self.has_news |= bool(text)
        if text and is_shown:
            line = f"{self.elapsed()}  trial {record.number:03d}  {text}"
            self._print_line(line if self.live else f"{line}  |  {self.line()}{self._new_best(best)}")

    def _new_best(self, before: TrialRecord | None) -> str:
        """Return the IoU of the best trial by class if it is another one than before, else nothing."""
        if self.status.best is before:
            return ""
        return "  |  best by class: " + "  ".join(f"{name} {iou}" for name, iou in self.status.best_classes().items())

    def _print_line(self, text: str) -> None:
        """Print one line unchanged: no markup, no line break."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def elapsed(self) -> str:
        """Return the time since the start of the run, e.g. "1:05"."""
        return clock(self.monotonic() - self.started)

    def line(self) -> str:
        """Return the study's progress, and the time left: as forecast, before that at the mean pace of this run."""
        now = self.monotonic()
        new = self.status.epochs_done - self.done_before
        pace = (now - self.started) / new if new else None
        if now >= self.forecast_due:
            self.expected, self.forecast_due = self.status.forecast(time.time()), now + FORECAST_EVERY_S
        expected = self.expected
        left = self.status.seconds_left(pace) if expected is None else expected.seconds_left
        return f"{self.status.summary_line()}, {time_left(left)}"

    def limits(self) -> list[str]:
        """Return a line for the time that the study has used, and one for its GPU time, if the time is limited."""
        metadata = self.status.metadata
        if metadata.max_hours is None and metadata.max_gpu_hours is None:
            return []
        return time_lines(metadata, time_used(metadata, self.status.records, time.time()))

    def summary(self) -> str:
        """Return progress, number of running trials and the limits of time in one line."""
        running = f"{len(self.status.running)} running, " if self.status.running else ""
        return f"{self.elapsed()}  " + "; ".join([running + self.line(), *self.limits()])

    def view(self) -> Group:
        """Build the live table: progress, limits of time, running trials, best trial."""
        lines = [Text(f"{self.elapsed()}  {self.line()}", style="bold"), *map(Text, self.limits())]
        most = max(1, self.console.height - OTHER_LINES)
        table = trial_table(self.status, self.console.width, time.time(), most)
        return Group(*lines, table, "")  # the terminal echoes Ctrl-C in the last line, which must not be broken by it


def event(before: TrialRecord | None, now: TrialRecord, epochs: int) -> str:
    """Describe the change between two records of a trial; empty if nothing changed.

    Args:
        before: previous record; None for a new trial.
        now: current record.
        epochs: of a whole trial.
    """
    if not now.is_open:
        return "" if before and before.state is now.state else ending(now)
    if before is None or before.attempt != now.attempt:
        return "started" if now.attempt == 1 else f"continued (attempt {now.attempt})"
    if len(before.epochs) == len(now.epochs):
        return ""
    return f"epoch {len(now.epochs)}/{epochs}  mIoU {now.epochs[-1].miou:.4f}"


def ending(record: TrialRecord) -> str:
    """Describe the end of a trial: its mIoU, or the reason."""
    if record.chosen is not None:
        return f"finished  mIoU {record.chosen.miou:.4f}"
    return f"{'stopped early' if record.state is State.PRUNED else 'FAILED'}: {record.reason}"
