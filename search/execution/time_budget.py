"""The time that a study may take: --max-hours and --max-gpu-hours."""

import math
import time
from collections.abc import Mapping
from types import MappingProxyType

from search.execution.stop_reason import StopReason, out_of_time
from search.ledger.ledger import Ledger
from search.ledger.records import TrialAttempt
from search.ledger.time_used import HOUR_S, read_pace, time_used
from search.study.config import SearchConfig


class TimeBudget:
    """Decides what still fits into the time of a study; without limits everything does.

    A new attempt leaves time for the repeats of --confirm, with as many trials at once as this run has had.

    Args:
        search: the limits.
        ledger: of the study; its metadata name the start of this run and the GPUs of a trial.
        live: the attempts that run now; the caller keeps it up to date.
    """

    def __init__(
        self, search: SearchConfig, ledger: Ledger, live: Mapping[str, TrialAttempt] = MappingProxyType({})
    ) -> None:
        limits = {"max_hours": search.max_hours, "max_gpu_hours": search.max_gpu_hours}
        self._limits = {name: hours for name, hours in limits.items() if hours is not None}
        self._ledger, self._live = ledger, live
        self._at_once = 1

    def is_used_up(self) -> bool:
        """Return whether a limit is reached, so that every trial is stopped after its current epoch."""
        return bool(self._limit(0))

    def fits(self, epochs: int) -> bool:
        """Return whether a trial that has this many epochs to train would end in time.

        Before the first epoch of the study every trial fits unless a limit is reached.
        """
        return not self._limit(epochs)

    def reason(self, epochs: int) -> StopReason:
        """Return why a run ends in which no trial of this many epochs fits any more."""
        return out_of_time(self._limit(epochs))

    def _limit(self, epochs: int) -> str:
        """Return the limit that this many more epochs of a new attempt would exceed, or that is reached; "" if none."""
        if not self._limits:
            return ""
        metadata, records = self._ledger.metadata, self._ledger.trials()
        used, pace = time_used(metadata, records, time.time()), read_pace(records)
        after = {"max_hours": used.hours, "max_gpu_hours": used.gpu_hours}
        if epochs and pace is not None:
            running = [records[attempt.number] for attempt in self._live.values()]
            promised = sum(max(0, r.length - len(r.epochs)) for r in running)
            self._at_once = max(self._at_once, len(running))
            kept = metadata.reserved * metadata.epochs
            kept_s = pace.seconds(metadata.epochs) * math.ceil(metadata.reserved / self._at_once)
            gpu_s = pace.epoch_s * (promised + epochs + kept) * metadata.resources.get("gpus", 0.0)
            after = {
                "max_hours": used.hours + (pace.seconds(epochs) + kept_s) / HOUR_S,
                "max_gpu_hours": used.gpu_hours + gpu_s / HOUR_S,
            }
        return next((name for name, hours in self._limits.items() if after[name] >= hours), "")
