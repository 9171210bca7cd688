"""Toy check of the samplers on the Hartmann function of six settings: python -m scripts.replay.hartmann [--seeds 36]

Prints the regret of the best of 24 trials, with 95 % intervals, from a start point near the optimum and from one that
is far from it.  `--warm-start` instead prints how many trials searches need to reach the mean regret of those without
a warm start, after a related study, which searched the same function moved along each axis, or a misleading one.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution

from fgseg.results import EpochResult
from scripts.arguments import positive
from scripts.replay.intervals import compare_trials, mean_with_interval
from scripts.replay.scripted_search import ScriptedSearch, scripted_epoch
from search.ledger.records import TrialRecord
from search.ledger.trial_source import NewTrial
from search.sampling.samplers import PRIOR, Prior
from search.sampling.study_sampler import StudySampler

ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
OPTIMUM = np.array([0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573])
LARGEST = 3.32237
SPACE = {f"x{axis}": FloatDistribution(0.0, 1.0) for axis in range(6)}
GOOD_SPREAD = 0.15
"""Standard deviation of a good start point around the optimum along each axis."""


def main() -> None:
    """Run the command line."""
    options = parse()
    if options.warm_start:
        return print_warm_starts(options.seeds, options.trials, options.noise, options.moved)
    print(f"regret of the best of {options.trials} trials, {options.seeds} seeds, noise {options.noise:g}")
    for sampler in options.samplers:
        for start in ("good", "bad"):
            seeds = range(options.seeds)
            searches = (run_search(sampler, start, seed, options.trials, noise=options.noise) for seed in seeds)
            found = mean_with_interval([regrets(records)[-1] for records in searches])
            print(f"{sampler:8} {start} start  {found}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.replay.hartmann", description=__doc__)
    parser.add_argument("--seeds", type=positive, default=36, help="number of searches (default: 36)")
    parser.add_argument("--trials", type=positive, default=24, help="trials of a search (default: 24)")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of a value's noise (default: 0)")
    parser.add_argument("--samplers", nargs="+", default=["auto", "gp"], help="names of samplers (default: auto gp)")
    parser.add_argument("--warm-start", action="store_true", help="measure --warm-start instead of the samplers")
    parser.add_argument("--moved", type=float, default=0.05, help="move of the related study (default: 0.05)")
    return parser.parse_args(arguments)


def print_warm_starts(seeds: int, trials: int, noise: float, moved: float) -> None:
    """Print the trials that searches with and without a warm start need to reach the mean regret of those without one.

    A related study is a search of as many trials from a bad start point, and its best point is given to a search with a
    bad start point.  A misleading study gives a bad point to a search with a good start point.  A search that does not
    reach the regret within twice the trials counts as one of that number.

    Args:
        seeds: number of searches of each kind.
        trials: of the searches that give the target, and of the related study.
        noise: standard deviation of a value's noise.
        moved: distance along each axis between the function of the related study and that of the search.
    """
    print(f"trials to reach the mean regret of {trials} trials without warm start, {seeds} seeds, noise {noise:g}")
    related = [best_point("bad", seed + seeds, trials, noise, moved) for seed in range(seeds)]
    misleading = [start_point("bad", np.random.default_rng(seed + seeds)) for seed in range(seeds)]
    for name, start, points in ((f"related, moved by {moved:g}", "bad", related), ("misleading", "good", misleading)):
        cold = [regrets(run_search("auto", start, seed, 2 * trials, noise=noise)) for seed in range(seeds)]
        warm = [
            regrets(run_search("auto", start, seed, 2 * trials, noise=noise, warm_start=[point]))
            for seed, point in enumerate(points)
        ]
        print(f"{name}: {compare_trials(cold, warm, trials)}", flush=True)


def hartmann(point: np.ndarray) -> float:
    """Return the value, at most LARGEST, at a point (6,) in [0, 1].  Source: Dixon and Szego 1978."""
    return float(ALPHA @ np.exp(-(A * np.square(point - P)).sum(1)))


def start_point(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return a good start point (6,), near the optimum, or a bad one, at the other side of the range on each axis."""
    scattered = OPTIMUM + GOOD_SPREAD * generator.standard_normal(6)
    moved = scattered if kind == "good" else np.where(scattered < 0.5, scattered + 0.5, scattered - 0.5)
    return np.clip(moved, 0.0, 1.0)


def regrets(records: Sequence[TrialRecord]) -> list[float]:
    """Return how much the best point of one search is below the optimum after each trial, without noise."""
    return list(np.minimum.accumulate([LARGEST - hartmann(point_of(record)) for record in records]))


def best_point(start: str, seed: int, trials: int, noise: float, moved: float) -> np.ndarray:
    """Return the point (6,) with the highest value of one search on the function moved along each axis."""
    records = run_search("auto", start, seed, trials, noise=noise, moved=moved)
    return point_of(max(records, key=lambda record: record.epochs[-1].miou))


def run_search(
    sampler: str,
    start: str,
    seed: int,
    trials: int,
    *,
    noise: float,
    warm_start: Sequence[np.ndarray] = (),
    prior: Prior = PRIOR,
    moved: float = 0.0,
) -> Sequence[TrialRecord]:
    """Run one search on the function moved along each axis; returns its trials."""
    generator = np.random.default_rng(seed)
    first, *warm = (
        dict(zip(SPACE, point.tolist(), strict=True)) for point in (start_point(start, generator), *warm_start)
    )
    settings: dict[str, Any] = {"trials": trials, "pruner": "none", "epochs": 1, "seed": seed, "prior": prior}
    search = ScriptedSearch(StudySampler(SPACE, first, sampler=sampler, warm_start=warm, **settings), epochs=1)

    def curve(new: NewTrial) -> list[EpochResult]:
        return [scripted_epoch(1, hartmann(point_of(new) - moved) + noise * generator.standard_normal())]

    search.run(curve)
    return search.records


def point_of(trial: NewTrial | TrialRecord) -> np.ndarray:
    """Return a trial's point (6,)."""
    return np.array([trial.params[name] for name in SPACE])


if __name__ == "__main__":
    sys.exit(main())
