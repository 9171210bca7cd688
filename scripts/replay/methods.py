"""One search replayed against a recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from scripts.replay.recorded_points import Curves, RecordedPoints
from scripts.replay.recording import load_recording
from scripts.replay.scripted_search import ScriptedSearch
from search.ledger.records import best_trial, rank_trials
from search.sampling.distributions import distributions
from search.sampling.posterior import posterior_of
from search.sampling.samplers import PRIOR, Prior
from search.sampling.study_sampler import StudySampler
from search.study.config import SearchConfig


@dataclass(frozen=True)
class Method:
    """A sampler and a pruner by their names in SearchConfig, and the prior of the sampler auto."""

    sampler: str
    pruner: str
    prior: Prior = PRIOR

    def __str__(self) -> str:
        name = self.sampler if self.prior == PRIOR else f"{self.sampler}, prior {self.prior}"
        return name if self.pruner == "none" else f"{name} + {self.pruner}"


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
    """Mean distance of the proposed points from the recorded ones, see `Curves.nearest`."""
    selected: dict[str, float]
    """Point of the trial that is selected after all trials."""


@cache
def curves_of(path: Path, interpolated: bool) -> Curves:
    """Return the curves of a recording, which a process reads once."""
    return Curves(load_recording(path), interpolated)


def replay(
    path: Path,
    method: Method,
    seed: int,
    trials: int,
    *,
    short: Path | None = None,
    interpolated: bool = False,
    warm_start: Sequence[Mapping[str, float]] = (),
) -> Outcome:
    """Run one search against a recording.

    Args:
        path: of the recording; its first row is the start point.
        method: sampler and pruner.
        seed: of the search.
        trials: budget of the search.
        short: recording of the same points with complete schedules of fewer epochs; see `RecordedPoints`.
        interpolated: see `Curves`.
        warm_start: points of other studies, see `StudySampler`.
    """
    curves = curves_of(path, interpolated)
    points = RecordedPoints(curves, np.random.default_rng(seed), curves_of(short, interpolated) if short else None)
    recording = curves.recording
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
        prior=method.prior,
        warm_start=warm_start,
    )
    search = ScriptedSearch(source, recording.epochs)
    search.run(points.curve)
    best = (best_trial(search.records[:count], changed_batch=False) for count in range(1, trials + 1))
    selected = [record.params for record in best if record is not None]
    regrets = [curves.best_value - curves.value(params) for params in selected]
    finished = rank_trials(search.records, changed_batch=False)
    expected = posterior_of(finished, ranges).rank(finished)[0]
    expected_regret = curves.best_value - curves.value(expected.params)
    return Outcome(regrets, search.epochs_spent, expected_regret, float(np.mean(points.distances)), selected[-1])
