"""The run as a person follows it: a live table on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from search.console.study_status import StudyStatus, clock, time_left
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata


class Progress:
    """Shows every epoch and every end of a trial, and how much time is left.

    Args:
        console: where to show it.
        metadata: the study's budget, and the length of its trials.
        records: every trial that the ledger holds at the start.
        look: where the study can be looked at meanwhile.
    """

    def __init__(self, console: Console, metadata: StudyMetadata, records: list[TrialRecord], look: str):
        self.console, self.look = console, look
        self.status = StudyStatus(metadata, records)
        self.started = time.monotonic()
        self.done_before = self.status.epochs_done
        self.live = (
            Live(console=console, get_renderable=self.view, refresh_per_second=2) if console.is_terminal else None
        )

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        else:
            self.say(f"look: {self.look}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def on_attempt(self, record: TrialRecord) -> None:
        """Show that a trial has started."""
        self._update(record)

    def on_epoch(self, record: TrialRecord) -> None:
        """Show a new epoch."""
        self._update(record)

    def on_trial_end(self, record: TrialRecord) -> None:
        """Show how a trial ended."""
        self._update(record)

    def on_note(self, number: int | None, text: str) -> None:
        """Print what a trial, or with None the run, reports."""
        about = "" if number is None else f"trial {number:03d}  note: "
        self.say(f"{self.now()}  {about}{text}")

    def _update(self, record: TrialRecord) -> None:
        """Show what has changed since the last record of a trial."""
        best = self.status.best
        before = self.status.update(record)
        text = event(before, record, self.status.metadata.epochs)
        if text and (not self.live or record.state is not State.RUNNING):
            self.say(f"{self.now()}  trial {record.number:03d}  {text}  |  {self.line()}")
        if not self.live and self.status.best is not best:
            self.say(f"{self.now()}  " + "  ".join(f"{k} {v}" for k, v in self.status.best_classes().items()))

    def say(self, text: str) -> None:
        """Print one line as it stands."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def now(self) -> str:
        """Time since the run began."""
        return clock(time.monotonic() - self.started)

    def line(self) -> str:
        """How far the study is, and how long it takes at this run's own pace."""
        new = self.status.epochs_done - self.done_before
        pace = (time.monotonic() - self.started) / new if new else None
        return f"{self.status.summary_line()}, {time_left(self.status.seconds_left(pace))}"

    def view(self) -> Group:
        """What a terminal shows: the study's standing, its running trials, its best trial, where to look."""
        return Group(
            Text(self.line(), style="bold"),
            self.status.running_table(),
            self.status.class_table(),
            Text(f"look: {self.look}", style="dim"),
        )


def event(before: TrialRecord | None, now: TrialRecord, epochs: int) -> str:
    """What has happened to a trial, in words; empty where nothing has."""
    if now.state is not State.RUNNING:
        return "" if before and before.state is now.state else ending(now)
    if before is None or before.attempt != now.attempt:
        return "started" if now.attempt == 1 else f"continued (start number {now.attempt})"
    if len(before.epochs) == len(now.epochs):
        return ""
    return f"epoch {len(now.epochs)}/{epochs}  mIoU {now.epochs[-1].miou:.4f}"


def ending(record: TrialRecord) -> str:
    """How a trial ended, in words."""
    if record.state is State.COMPLETE:
        return f"finished  mIoU {record.value:.4f}"
    return f"{'stopped early' if record.state is State.PRUNED else 'FAILED'}: {record.reason}"
