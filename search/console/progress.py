"""Show the progress of a run: a live table on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from search.console.forecast import FORECAST_TRIALS, Forecast, clock, forecast_line
from search.console.study_status import StudyStatus, time_left
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata

FORECAST_EVERY_S = 1.0
"""Seconds for which a forecast is shown: to compute it takes milliseconds in a study of thousands of trials."""


class Progress:
    """Shows every epoch and every end of a trial, and an estimate of the time left.

    A context manager and a `TrialListener`; for the driver's main thread only.

    Args:
        console: prints the lines, or the live table if it is a terminal.
        metadata: the study's budget, and the epochs of a trial.
        records: every trial of the ledger at the start.
        look: address or command to view the study in MLflow.
    """

    def __init__(self, console: Console, metadata: StudyMetadata, records: list[TrialRecord], look: str):
        self.console, self.look = console, look
        self.status = StudyStatus(metadata, records)
        self.started = time.monotonic()
        self.expected: Forecast | None = None
        self.forecast_due = 0.0
        self.done_before = self.status.epochs_done
        self.live = (
            Live(console=console, get_renderable=self.view, refresh_per_second=2) if console.is_terminal else None
        )

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        else:
            self._print_line(f"look: {self.look}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def on_attempt(self, record: TrialRecord) -> None:
        """Print the start or continuation of a trial."""
        self._update(record)

    def on_epoch(self, record: TrialRecord) -> None:
        """Print a new epoch; a live table shows the epoch without a line of its own."""
        self._update(record)

    def on_trial_end(self, record: TrialRecord) -> None:
        """Print the end of a trial, and the first forecast of the study's end."""
        had_forecast = len(self.status.ended) >= FORECAST_TRIALS
        self._update(record)
        if not had_forecast and (expected := self.status.forecast(time.time())) is not None:
            self._print_line(f"{self.elapsed()}  {forecast_line(self.status.metadata, expected)}")

    def on_note(self, number: int | None, text: str) -> None:
        """Print a note of a trial, or with None of the run, such as a warning of a worker."""
        about = "" if number is None else f"trial {number:03d}  note: "
        self._print_line(f"{self.elapsed()}  {about}{text}")

    def _update(self, record: TrialRecord) -> None:
        """Print the changes since the last record of a trial, and a new best trial."""
        best = self.status.best
        before = self.status.update(record)
        text = event(before, record, self.status.metadata.epochs)
        if text and (not self.live or record.state is not State.RUNNING):
            self._print_line(f"{self.elapsed()}  trial {record.number:03d}  {text}  |  {self.line()}")
        if not self.live and self.status.best is not best:
            self._print_line(
                f"{self.elapsed()}  " + "  ".join(f"{k} {v}" for k, v in self.status.best_classes().items())
            )

    def _print_line(self, text: str) -> None:
        """Print one line unchanged: no markup, no line break."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def elapsed(self) -> str:
        """Return the time since the start of the run, e.g. "1:05"."""
        return clock(time.monotonic() - self.started)

    def line(self) -> str:
        """Return the study's progress, and the time left: as forecast, before that at the mean pace of this run."""
        new = self.status.epochs_done - self.done_before
        pace = (time.monotonic() - self.started) / new if new else None
        if time.monotonic() >= self.forecast_due:
            self.expected, self.forecast_due = self.status.forecast(time.time()), time.monotonic() + FORECAST_EVERY_S
        expected = self.expected
        left = self.status.seconds_left(pace) if expected is None else expected.seconds_left
        return f"{self.status.summary_line()}, {time_left(left)}"

    def view(self) -> Group:
        """Build the live view: progress, running trials, best trial by class, and the address of MLflow."""
        return Group(
            Text(self.line(), style="bold"),
            self.status.running_table(),
            self.status.class_table(),
            Text(f"look: {self.look}", style="dim"),
        )


def event(before: TrialRecord | None, now: TrialRecord, epochs: int) -> str:
    """Describe the change between two records of a trial; empty if nothing changed.

    Args:
        before: previous record; None for a new trial.
        now: current record.
        epochs: of a whole trial.
    """
    if now.state is not State.RUNNING:
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
