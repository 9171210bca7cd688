"""Progress of a study, computed from its trials: for the live view of a run and for `search.status`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from fgseg.labels import display_name
from fgseg.results import EpochResult, format_iou, select_epoch
from search.ledger.records import State, TrialRecord, best_trial
from search.ledger.study_metadata import StudyMetadata

RECENT_EPOCHS = 20
"""Number of latest epochs over which `recent_pace` averages."""


class StudyStatus:
    """Progress of a study, updated incrementally: the cost of an update does not grow with the number of trials.

    Args:
        metadata: the study's budget, and the epochs of a trial.
        records: all trials of the ledger.
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
        """Replace the record of a trial; returns the previous one, or None.  Ignores updates of an ended trial."""
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
        """Return the epochs of a trial that are done; an ended trial counts as whole, even if stopped early."""
        return len(record.epochs) if record.state is State.RUNNING else self.metadata.epochs

    def seconds_left(self, pace: float | None) -> float | None:
        """Estimate the seconds until the budget is used up.

        Args:
            pace: seconds per epoch of the study; None if unknown, which gives None.
        """
        missing = max(0, self.metadata.budget * self.metadata.epochs - self.epochs_done)
        return None if pace is None else missing * pace

    def summary_line(self) -> str:
        """Return the number of ended trials, the best trial and the number of failures in one line."""
        parts = [f"{len(self.ended)}/{self.metadata.budget} trials"]
        parts += [f"best {self.best.value:.4f} (trial {self.best.number:03d})"] if self.best else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)

    def best_classes(self) -> dict[str, str]:
        """Return number and IoU by class name of the best trial as texts; empty while no trial has finished."""
        if self.best is None or self.best.chosen is None:
            return {}
        iou = self.best.chosen.iou
        return {"best trial": f"{self.best.number:03d}"} | {
            display_name(key): format_iou(value) for key, value in iou.items()
        }

    def running_table(self) -> Table:
        """List the open trials with their latest epoch and their highest mIoU so far."""
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "epoch", "val mIoU", "its best", "train loss", "images/s"):
            table.add_column(column, justify="right")
        for number, record in sorted(self.running.items()):
            table.add_row(f"{number:03d}", f"{len(record.epochs)}/{self.metadata.epochs}", *latest(record.epochs))
        return table

    def class_table(self) -> Table:
        """Show the best trial's IoU by class; no rows while no trial has finished."""
        table = Table(box=None, pad_edge=False)
        if classes := self.best_classes():
            for name in classes:
                table.add_column(name, justify="right")
            table.add_row(*classes.values())
        return table


@dataclass(frozen=True)
class TrialTime:
    """Mean duration of the finished trials that were started once, in seconds."""

    total: float
    """From the request for the trial to its end."""
    training: float
    """Training and validation."""

    @property
    def fixed(self) -> float:
        """Everything else: starting the worker, loading data and model, checkpoints, overlays."""
        return max(0.0, self.total - self.training)

    def __str__(self) -> str:
        share = self.fixed / self.total if self.total else 0.0
        return (
            f"a trial takes {clock(self.total)}: {clock(self.training)} of training and validation, "
            f"{clock(self.fixed)} ({share:.0%}) of fixed cost"
        )


def trial_time(records: Iterable[TrialRecord]) -> TrialTime | None:
    """Return the mean duration of the finished trials that were started once; None if there is none."""
    whole = [(r, r.ended) for r in records if r.state is State.COMPLETE and r.attempt == 1]
    spans = [(end - r.started, math.fsum(e.seconds for e in r.epochs)) for r, end in whole if end is not None]
    return TrialTime(*(math.fsum(column) / len(spans) for column in zip(*spans, strict=True))) if spans else None


def latest(epochs: list[EpochResult]) -> list[str]:
    """Format the cells of a running trial: latest mIoU, highest mIoU, train loss, images per second."""
    if not epochs:
        return ["-"] * 4
    last, best = epochs[-1], select_epoch(epochs, "best")
    return [format_iou(last.miou), format_iou(best.miou), f"{last.loss:.4f}", f"{last.images_per_s:.1f}"]


def recent_pace(records: Iterable[TrialRecord], now: float) -> float | None:
    """Return the mean seconds between epochs of the study over the last RECENT_EPOCHS; None before the second epoch.

    Args:
        records: all trials of the study.
        now: seconds since 1970; counts as the end of the current interval if no epoch has ended since.
    """
    moments = sorted(e.wall_time for r in records for e in r.epochs)[-RECENT_EPOCHS:]
    return (max(now, moments[-1]) - moments[0]) / len(moments) if len(moments) > 1 else None


def time_left(seconds: float | None) -> str:
    """Format the time left in seconds; None if unknown."""
    return "time left unknown yet" if seconds is None else f"about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
