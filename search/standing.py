"""Where a study stands, from its records: for the live view of a run and for `search.status` in another shell."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rich.table import Table

from fgseg.epoch import EpochResult, select_epoch, show
from fgseg.labels import FOREGROUND
from search.facts import StudyFacts
from search.record import State, TrialRecord, best_trial

RECENT_EPOCHS = 20
"""Epochs from which the pace of a study is taken."""


@dataclass(frozen=True)
class Goal:
    """What a study is to reach, and what counts as its best trial."""

    trials: int
    """The whole budget."""
    epochs: int
    """A trial's full length."""
    changed_batch: bool
    """Whether a trial may be the best whose batch size had to be changed."""

    def best(self, records: Iterable[TrialRecord]) -> TrialRecord | None:
        """The best trial, None while none has finished."""
        return best_trial(records, self.changed_batch)

    def epochs_done(self, records: Iterable[TrialRecord]) -> int:
        """Epochs that need not be trained any more; a trial that ended early counts as whole."""
        return sum(len(r.epochs) if r.state is State.RUNNING else self.epochs for r in records)

    def seconds_left(self, records: Collection[TrialRecord], pace: float | None) -> float | None:
        """Time left at a pace of so many seconds an epoch; None where there is no pace yet."""
        missing = max(0, self.trials * self.epochs - self.epochs_done(records))
        return None if pace is None else missing * pace

    def standing(self, records: Collection[TrialRecord]) -> str:
        """How far the study is, in one line: trials, the best so far, failures."""
        best, failed = self.best(records), sum(r.state is State.FAIL for r in records)
        parts = [f"{sum(r.state is not State.RUNNING for r in records)}/{self.trials} trials"]
        parts += [f"best {best.value:.4f} (trial {best.number:03d})"] if best else []
        parts += [f"{failed} failed"] if failed else []
        return ", ".join(parts)

    def best_classes(self, records: Iterable[TrialRecord]) -> dict[str, str]:
        """Number and IoU by class of the best trial, as texts; empty while no trial has finished."""
        best = self.best(records)
        if best is None or best.chosen is None:
            return {}
        return {"best trial": f"{best.number:03d}"} | {c.name: show(best.chosen.iou[c.key]) for c in FOREGROUND}

    def running_table(self, records: Iterable[TrialRecord]) -> Table:
        """The trials that have not ended, each with its latest epoch and its highest mIoU so far."""
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "epoch", "val mIoU", "its best", "train loss", "images/s"):
            table.add_column(column, justify="right")
        for r in sorted(records, key=lambda r: r.number):
            if r.state is State.RUNNING:
                table.add_row(f"{r.number:03d}", f"{len(r.epochs)}/{self.epochs}", *latest(r.epochs))
        return table

    def class_table(self, records: Iterable[TrialRecord]) -> Table:
        """The best trial class by class; without rows while no trial has finished."""
        table = Table(box=None, pad_edge=False)
        if classes := self.best_classes(records):
            for name in classes:
                table.add_column(name, justify="right")
            table.add_row(*classes.values())
        return table


def goal_of(facts: StudyFacts) -> Goal:
    """What the study's last run was to reach."""
    card = facts.card
    epochs = card.get("settings", {}).get("train.epochs", 1)
    return Goal(facts.budget, epochs, card.get("allow_changed_batch", False))


def latest(epochs: list[EpochResult]) -> list[str]:
    """The cells of a running trial: mIoU of its latest epoch, its highest mIoU, loss, speed."""
    if not epochs:
        return ["-"] * 4
    last, best = epochs[-1], select_epoch(epochs, "best")
    return [show(last.miou), show(best.miou), f"{last.loss:.4f}", f"{last.images_per_s:.1f}"]


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
