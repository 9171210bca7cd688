"""Time that a study has used and the time that its trials take, computed from its records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata

HOUR_S = 3600.0
LIMITS = ("max_hours", "max_gpu_hours")
"""Settings that limit the time of a study."""
RECENT_TRIALS = 100
"""Number of latest trials among which `read_pace` looks, so that its cost does not grow with the study."""
RECENT_EPOCHS = 20
"""Number of latest epochs over which `read_pace` averages: other programs on the machine change the pace."""


@dataclass(frozen=True)
class TimeUsed:
    """Time that a study has used in all its runs."""

    hours: float
    """Wall-clock hours, from the start of each run to its last recorded event; a live run lasts until now."""
    gpu_hours: float
    """GPU-hours of the recorded epochs, with the GPUs per trial of the latest run; 0 without GPUs."""


NOT_STARTED = TimeUsed(0.0, 0.0)
"""Of a study without a run."""


def time_used(metadata: StudyMetadata, records: Sequence[TrialRecord], now: float | None = None) -> TimeUsed:
    """Sum up the time that a study has used.

    Args:
        metadata: of the study.
        records: all its trials.
        now: Unix seconds while a driver runs the study; None if no driver does.
    """
    moments = [moment for record in records for moment in moments_of(record)]
    ends = [*metadata.runs[1:], float("inf")]
    spans = [
        max((m for m in moments if began <= m < end), default=began) - began
        for began, end in zip(metadata.runs, ends, strict=False)
    ]
    if now is not None and spans:
        spans[-1] = max(0.0, now - metadata.runs[-1])
    trained_s = sum(epoch.seconds for record in records for epoch in record.epochs)
    return TimeUsed(sum(spans) / HOUR_S, metadata.resources.get("gpus", 0.0) * trained_s / HOUR_S)


def limits_left(limits: Mapping[str, float | None], used: Iterable[TimeUsed]) -> dict[str, float]:
    """Return what is left of the limits of `LIMITS` that are set, in hours, after some studies; perhaps negative.

    Args:
        limits: hours by name; None for no limit.
        used: time of each study.
    """
    times = list(used)
    spent = {"max_hours": sum(u.hours for u in times), "max_gpu_hours": sum(u.gpu_hours for u in times)}
    return {name: limit - spent[name] for name in LIMITS if (limit := limits[name]) is not None}


def moments_of(record: TrialRecord) -> list[float]:
    """Return the Unix seconds of a trial's start, its epochs, and its end."""
    return [record.started, *(epoch.wall_time for epoch in record.epochs), *([record.ended] if record.ended else [])]


@dataclass(frozen=True)
class Pace:
    """Seconds that a trial takes."""

    epoch_s: float
    """Seconds of training and validation of one epoch."""
    start_s: float
    """Seconds that a trial takes besides its epochs."""

    def seconds(self, epochs: int) -> float:
        """Return the seconds of a trial that has this many epochs to train."""
        return self.start_s + epochs * self.epoch_s


def read_pace(records: Sequence[TrialRecord]) -> Pace | None:
    """Return the pace of a study's latest epochs; None before the first epoch.

    `start_s` is the smallest of the finished trials that started after another one had ended: the first trials of a
    run also start the processes that train the later ones.

    Args:
        records: all trials of the study, by number.
    """
    recent = records[-RECENT_TRIALS:]
    epochs = sorted((e for r in recent for e in r.epochs), key=lambda e: e.wall_time)[-RECENT_EPOCHS:]
    if not epochs:
        return None
    first_end = min((r.ended for r in recent if r.ended is not None), default=0.0)
    later = (r for r in recent if r.state is State.COMPLETE and r.attempt == 1 and r.started >= first_end)
    starts = [r.ended - r.started - sum(e.seconds for e in r.epochs) for r in later if r.ended is not None]
    return Pace(fmean(e.seconds for e in epochs), max(0.0, min(starts, default=0.0)))
