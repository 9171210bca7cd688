"""Where a study stands, from its records: for the live view of a run and for `search.status` in another shell."""

from collections.abc import Iterable

from rich.table import Table

from fgseg.labels import FOREGROUND
from fgseg.results import EpochResult, format_iou, select_epoch
from search.ledger.records import State, TrialRecord, best_trial
from search.ledger.study_metadata import StudyMetadata

RECENT_EPOCHS = 20
"""Epochs from which the pace of a study is taken."""


class StudyStatus:
    """How far a study is: kept up record by record, so that no news costs more the more trials there are.

    Args:
        metadata: the study's budget, and the length of its trials.
        records: what its ledger holds.
    """

    def __init__(self, metadata: StudyMetadata, records: Iterable[TrialRecord]) -> None:
        self.metadata = metadata
        self.running: dict[int, TrialRecord] = {}
        self.ended: dict[int, TrialRecord] = {}
        self.best: TrialRecord | None = None
        self.failed = self.epochs_done = 0
        for record in records:
            self.update(record)

    def update(self, record: TrialRecord) -> TrialRecord | None:
        """Take in what the ledger now holds about a trial; returns what it held before.  An ended trial stays ended."""
        if record.number in self.ended:
            return self.ended[record.number]
        before = self.running.pop(record.number, None)
        self.epochs_done += self.epochs_accounted(record) - (self.epochs_accounted(before) if before else 0)
        if record.state is State.RUNNING:
            self.running[record.number] = record
        else:
            self.ended[record.number] = record
            self.failed += record.state is State.FAIL
            rivals = [record, *([self.best] if self.best else [])]
            self.best = best_trial(rivals, self.metadata.allow_changed_batch)
        return before

    def epochs_accounted(self, record: TrialRecord) -> int:
        """Epochs that need not be trained any more; a trial that ended early counts as whole."""
        return len(record.epochs) if record.state is State.RUNNING else self.metadata.epochs

    def seconds_left(self, pace: float | None) -> float | None:
        """Time left at a pace of so many seconds an epoch; None where there is no pace yet."""
        missing = max(0, self.metadata.budget * self.metadata.epochs - self.epochs_done)
        return None if pace is None else missing * pace

    def summary_line(self) -> str:
        """How far the study is: trials, the best so far, failures."""
        parts = [f"{len(self.ended)}/{self.metadata.budget} trials"]
        parts += [f"best {self.best.value:.4f} (trial {self.best.number:03d})"] if self.best else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)

    def best_classes(self) -> dict[str, str]:
        """Number and IoU by class of the best trial, as texts; empty while no trial has finished."""
        if self.best is None or self.best.chosen is None:
            return {}
        iou = self.best.chosen.iou
        return {"best trial": f"{self.best.number:03d}"} | {c.name: format_iou(iou[c.key]) for c in FOREGROUND}

    def running_table(self) -> Table:
        """The trials that have not ended, each with its latest epoch and its highest mIoU so far."""
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "epoch", "val mIoU", "its best", "train loss", "images/s"):
            table.add_column(column, justify="right")
        for number, record in sorted(self.running.items()):
            table.add_row(f"{number:03d}", f"{len(record.epochs)}/{self.metadata.epochs}", *latest(record.epochs))
        return table

    def class_table(self) -> Table:
        """The best trial class by class; without rows while no trial has finished."""
        table = Table(box=None, pad_edge=False)
        if classes := self.best_classes():
            for name in classes:
                table.add_column(name, justify="right")
            table.add_row(*classes.values())
        return table


def latest(epochs: list[EpochResult]) -> list[str]:
    """The cells of a running trial: mIoU of its latest epoch, its highest mIoU, loss, speed."""
    if not epochs:
        return ["-"] * 4
    last, best = epochs[-1], select_epoch(epochs, "best")
    return [format_iou(last.miou), format_iou(best.miou), f"{last.loss:.4f}", f"{last.images_per_s:.1f}"]


def recent_pace(records: Iterable[TrialRecord], now: float) -> float | None:
    """Seconds from one finished epoch of the study to the next, lately; None before the second.

    Args:
        records: of the study.
        now: unix seconds; an epoch that is long in coming slows the pace.
    """
    moments = sorted(e.wall_time for r in records for e in r.epochs)[-RECENT_EPOCHS:]
    return (max(now, moments[-1]) - moments[0]) / len(moments) if len(moments) > 1 else None


def time_left(seconds: float | None) -> str:
    """Time left, in words."""
    return "time left unknown yet" if seconds is None else f"about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
