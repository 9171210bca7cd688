"""Forecast when a study ends and how many trials fit into its time; and the time that it has used."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.ledger.records import TrialRecord, count_ended
from search.ledger.study_metadata import StudyMetadata
from search.ledger.time_used import HOUR_S, TimeUsed, moments_of, read_pace, time_used

FORECAST_TRIALS = 2
"""Number of ended trials from which a study's end is forecast."""

STARTS = 4
"""Number of latest trials at whose start the running trials are counted: between two trials a place is free."""


@dataclass(frozen=True)
class Forecast:
    """The expected end of a study."""

    seconds_left: float
    """Until the last trial ends."""
    trials: int
    """Trials that the study will then have, those included that have ended."""


def forecast(metadata: StudyMetadata, records: Sequence[TrialRecord], now: float) -> Forecast | None:
    """Forecast the end of a study that a driver runs.

    The open trials go on, and each later one starts as soon as a place is free, unless it would not end in time.  All
    take as long as the latest trials did.

    Args:
        metadata: of the study.
        records: all its trials, by number.
        now: Unix seconds.

    Returns:
        None until FORECAST_TRIALS have ended.
    """
    pace = read_pace(records)
    if pace is None or count_ended(records) < FORECAST_TRIALS:
        return None
    used, at_once = time_used(metadata, records, now), trials_at_once(records)
    running = [record for record in records if record.is_open]
    epochs_left = [max(0, metadata.epochs - len(record.epochs)) for record in running]
    places = [
        max(0.0, left * pace.epoch_s - (now - moments_of(record)[-1]))
        for record, left in zip(running, epochs_left, strict=True)
    ]
    places += [0.0] * (at_once - len(places))
    heapq.heapify(places)
    trial_s, limit_s = pace.seconds(metadata.epochs), left_of(metadata.max_hours, used.hours) * HOUR_S
    limit_s -= trial_s * math.ceil(metadata.reserved / at_once)
    new = min(metadata.budget - len(records), gpu_trials(metadata, used, pace.epoch_s, sum(epochs_left)))
    started = 0
    while started < new and places[0] + trial_s <= limit_s:
        heapq.heapreplace(places, places[0] + trial_s)
        started += 1
    return Forecast(max(places), len(records) + started)


def trials_at_once(records: Sequence[TrialRecord]) -> int:
    """Return how many trials ran at the same time when one of the latest STARTS trials began; at least 1."""
    running = [
        sum(r.started <= latest.started and (r.ended is None or r.ended > latest.started) for r in records)
        for latest in records[-STARTS:]
    ]
    return max(running, default=1)


def gpu_trials(metadata: StudyMetadata, used: TimeUsed, epoch_s: float, promised: int) -> float:
    """Return how many more trials fit into the GPU-hours, after the epochs promised to open ones; may be infinite."""
    gpus = metadata.resources.get("gpus", 0.0)
    if metadata.max_gpu_hours is None or not gpus:
        return math.inf
    kept = promised + metadata.reserved * metadata.epochs
    left_s = left_of(metadata.max_gpu_hours, used.gpu_hours) * HOUR_S / gpus - kept * epoch_s
    return max(0, math.floor(left_s / (metadata.epochs * epoch_s)))


def left_of(limit: float | None, used: float) -> float:
    """Return what is left of a limit, at least 0; infinite without a limit."""
    return math.inf if limit is None else max(0.0, limit - used)


def forecast_line(metadata: StudyMetadata, expected: Forecast) -> str:
    """Describe a forecast in one line."""
    limits = [f"--max-hours {metadata.max_hours:g}"] if metadata.max_hours is not None else []
    limits += [f"--max-gpu-hours {metadata.max_gpu_hours:g}"] if metadata.max_gpu_hours is not None else []
    cut = f" with {' and '.join(limits)}" if limits and expected.trials < metadata.budget else ""
    return f"forecast: {expected.trials} of {metadata.budget} trials in about {clock(expected.seconds_left)}{cut}"


def time_lines(metadata: StudyMetadata, used: TimeUsed) -> list[str]:
    """Describe the time that a study has used, and the time that it has left where it is limited; one line each."""
    amounts = [("time", "--max-hours", metadata.max_hours, used.hours)]
    if metadata.resources.get("gpus") or metadata.max_gpu_hours is not None:
        amounts.append(("GPU time", "--max-gpu-hours", metadata.max_gpu_hours, used.gpu_hours))
    lines = []
    for name, flag, limit, hours in amounts:
        text = f"{name} used: {clock(hours * HOUR_S)}"
        if limit is not None:
            text += f" of {clock(limit * HOUR_S)} ({flag} {limit:g}), {clock(left_of(limit, hours) * HOUR_S)} left"
        lines.append(text)
    return lines


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
