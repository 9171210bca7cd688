"""One search replayed against a recording."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from scripts.replay.recorded_points import RecordedPoints
from scripts.replay.recording import Recording, load_recording
from scripts.replay.scripted_search import ScriptedSearch
from search.ledger.records import best_trial, rank_trials
from search.sampling.distributions import distributions
from search.sampling.posterior import posterior_of
from search.sampling.study_sampler import StudySampler
from search.study.config import SearchConfig


@dataclass(frozen=True)
class Method:
    """A sampler and a pruner by their names in SearchConfig."""

    sampler: str
    pruner: str

    def __str__(self) -> str:
        return self.sampler if self.pruner == "none" else f"{self.sampler} + {self.pruner}"


@dataclass(frozen=True)
class Outcome:
    """One replayed search."""

    regrets: list[float]
    """Of the trial that is selected after 1, 2, ... trials."""
    epochs: int
    """Epochs spent."""
    expected_regret: float
    """Of the trial with the highest expected mIoU after all trials."""
    distance: float
    """Mean distance of the proposed points from the recorded ones, see `RecordedPoints.distances`."""


@cache
def loaded(path: Path) -> Recording:
    """Return a recording, which a process reads once."""
    return load_recording(path)


def replay(path: Path, method: Method, seed: int, trials: int, short: Path | None = None) -> Outcome:
    """Run one search against a recording.

    Args:
        path: of the recording; its first row is the start point.
        method: sampler and pruner.
        seed: of the search.
        trials: budget of the search.
        short: see `RecordedPoints`.
    """
    recording = loaded(path)
    points = RecordedPoints(recording, np.random.default_rng(seed), loaded(short) if short else None)
    ranges = recording.ranges
    source = StudySampler(
        distributions(ranges),
        recording.point(0),
        trials=trials,
        sampler=SearchConfig.model_validate({"sampler": method.sampler, "pruner": method.pruner}).resolved_sampler,
        pruner=method.pruner,
        epochs=recording.epochs,
        seed=seed,
        off_below={key: r.off_below for key, r in ranges.items() if r.off_below is not None},
    )
    search = ScriptedSearch(source, recording.epochs)
    search.run(points.curve)
    selected = (best_trial(search.records[:count], changed_batch=False) for count in range(1, trials + 1))
    regrets = [points.values.max() - points.value(best.params) for best in selected if best is not None]
    finished = rank_trials(search.records, changed_batch=False)
    expected = posterior_of(finished, ranges).rank(finished)[0]
    expected_regret = points.values.max() - points.value(expected.params)
    return Outcome(regrets, search.epochs_spent, expected_regret, float(np.mean(points.distances)))
