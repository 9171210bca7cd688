"""The run as a person follows it: a live table on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from search.ledger import State, TrialRecord


class Progress:
    """Shows every epoch and every end of a trial, and how much time is left.

    Args:
        console: where to show it.
        trials: the study's whole budget.
        epochs: a trial's full length.
        records: every trial that the ledger holds at the start.
    """

    def __init__(self, console: Console, trials: int, epochs: int, records: list[TrialRecord]):
        self.console, self.trials, self.epochs = console, trials, epochs
        self.records = {r.number: r for r in records}
        self.started = time.monotonic()
        self.done_before = self.epochs_done()
        self.live = (
            Live(console=console, get_renderable=self.table, refresh_per_second=2) if console.is_terminal else None
        )

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def update(self, record: TrialRecord) -> None:
        """Take in what the ledger now holds about a trial."""
        before = self.records.get(record.number)
        self.records[record.number] = record
        text = event(before, record, self.epochs)
        if text and (not self.live or record.state is not State.RUNNING):
            head = f"{clock(time.monotonic() - self.started)}  trial {record.number:03d}"
            self.console.print(f"{head}  {text}  |  {self.standing()}", highlight=False, markup=False, soft_wrap=True)

    def note(self, number: int, text: str) -> None:
        """Tell something that a person should know about a trial."""
        self.console.print(
            f"{clock(time.monotonic() - self.started)}  trial {number:03d}  note: {text}", soft_wrap=True
        )

    def standing(self) -> str:
        """How far the study is: trials, the best so far, failures, time left."""
        ended = [r for r in self.records.values() if r.state is not State.RUNNING]
        best = max((r for r in ended if r.value is not None), key=lambda r: r.value or 0, default=None)
        failed = sum(r.state is State.FAIL for r in ended)
        parts = [f"{len(ended)}/{self.trials} trials"]
        parts += [f"best {best.value:.4f} (trial {best.number:03d})"] if best else []
        parts += [f"{failed} failed"] if failed else []
        left = self.seconds_left()
        return ", ".join([*parts, f"about {clock(left)} left" if left is not None else "time left unknown yet"])

    def epochs_done(self) -> int:
        """Epochs that need not be trained any more; a trial that ended early counts as whole."""
        return sum(len(r.epochs) if r.state is State.RUNNING else self.epochs for r in self.records.values())

    def seconds_left(self) -> float | None:
        """At this run's own pace; None before its first epoch."""
        done = self.epochs_done()
        if done == self.done_before:
            return None
        pace = (time.monotonic() - self.started) / (done - self.done_before)
        return max(0, self.trials * self.epochs - done) * pace

    def table(self) -> Table:
        """The running trials and the study's standing."""
        table = Table(title=self.standing(), title_justify="left", box=None, pad_edge=False)
        for column in ("trial", "epoch", "val mIoU", "train loss", "images/s"):
            table.add_column(column, justify="right")
        for r in sorted(self.records.values(), key=lambda r: r.number):
            if r.state is State.RUNNING:
                last = r.epochs[-1] if r.epochs else None
                cells = (
                    [f"{last.miou:.4f}", f"{last.loss:.4f}", f"{last.images_per_s:.1f}"] if last else ["-", "-", "-"]
                )
                table.add_row(f"{r.number:03d}", f"{len(r.epochs)}/{self.epochs}", *cells)
        return table


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


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
