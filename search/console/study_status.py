"""Progress of a study, computed from its trials: for the live view of a run and for `search.status`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgseg.labels import display_name
from fgseg.results import format_iou
from search.console.forecast import Forecast, clock, forecast
from search.ledger.records import State, TrialRecord, keeps
from search.ledger.study_metadata import StudyMetadata
from search.study.objective import MIOU, objective_name

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
        if record.is_open:
            self.running[record.number] = record
        else:
            self.ended[record.number] = record
            self.failed += record.state is State.FAIL
            rivals = [record, *([self.best] if self.best else [])]
            self.best = next(iter(self.metadata.rank(rivals)), None)
        return before

    @property
    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        trials = self.ended | self.running
        return [trials[number] for number in sorted(trials)]

    def epochs_accounted(self, record: TrialRecord) -> int:
        """Return the epochs of a trial that are done; an ended trial counts as whole, even if stopped early."""
        return len(record.epochs) if record.is_open else self.metadata.epochs

    def seconds_left(self, pace: float | None) -> float | None:
        """Estimate the seconds until the budget is used up.

        Args:
            pace: seconds per epoch of the study; None if unknown, which gives None.
        """
        missing = max(0, self.metadata.budget * self.metadata.epochs - self.epochs_done)
        return None if pace is None else missing * pace

    def forecast(self, now: float) -> Forecast | None:
        """Forecast the end of the study, see `forecast`; its cost grows with the number of trials.

        Args:
            now: Unix seconds.
        """
        return forecast(self.metadata, self.records, now)

    def summary_line(self) -> str:
        """Return the number of ended trials, the best trial and the number of failures in one line."""
        parts = [f"{len(self.ended)}/{self.metadata.budget} trials"]
        if self.best:
            parts.append(f"best {scored(self.best.number, self.best.value or 0.0, self.metadata.objectives[0])}")
        if self.best and not keeps(self.best, self.metadata.constraint.floors):
            parts.append(f"no trial keeps {', '.join(self.metadata.constraint.floors)}")
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(parts)

    def best_classes(self) -> dict[str, str]:
        """Return the IoU of the best trial by class name as texts; empty while no trial has finished."""
        if self.best is None or self.best.chosen is None:
            return {}
        return {display_name(key): format_iou(value) for key, value in self.best.chosen.iou.items()}


def scored(number: int, value: float, objective: str) -> str:
    """Describe the best trial by its value, with the metric's name unless it is the mIoU."""
    name = "" if objective == MIOU else f"{objective_name(objective)} "
    return f"{name}{value:.4f} (trial {number:03d})"


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


def recent_pace(records: Iterable[TrialRecord], now: float) -> float | None:
    """Return the mean seconds between epochs of the study over the last RECENT_EPOCHS; None before the second epoch.

    Args:
        records: all trials of the study.
        now: seconds since 1970; counts as the end of the current interval if no epoch has ended since.
    """
    moments = sorted(e.wall_time for r in records for e in r.epochs)[-RECENT_EPOCHS:]
    return (max(now, moments[-1]) - moments[0]) / len(moments) if len(moments) > 1 else None


def expected_end(
    metadata: StudyMetadata, records: Sequence[TrialRecord], now: float
) -> tuple[float | None, Forecast | None]:
    """Return the seconds until a study ends, and its forecast.

    Before a forecast is possible, the seconds follow from the pace of the latest epochs.

    Args:
        metadata: of a study that a driver runs.
        records: all its trials, by number.
        now: Unix seconds.

    Returns:
        None for what is not known yet.
    """
    expected = forecast(metadata, records, now)
    if expected is not None:
        return expected.seconds_left, expected
    return StudyStatus(metadata, records).seconds_left(recent_pace(records, now)), None


def time_left(seconds: float | None) -> str:
    """Format the time left in seconds; None if unknown."""
    return "time left unknown yet" if seconds is None else f"about {clock(seconds)} left"
