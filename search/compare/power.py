"""How many seeds a comparison needs: the power of its test, and a check of the test on equal families."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from search.compare.statistics import ALPHA, RESAMPLES, Array, bootstrap, paired_difference

POWER = 0.8
"""Probability with which a difference is to be found."""
MAX_SEEDS = 1000
"""Number of seeds up to which `seeds_needed` looks."""


@dataclass(frozen=True)
class Noise:
    """Variances of the difference between two families in one score."""

    of_seed: float
    """Between seeds; the mean over S seeds has 1 / S of it."""
    of_images: float
    """From the choice of the test frames, which more seeds do not reduce."""
    images: int
    """Number of test frames."""

    def error(self, seeds: int) -> float:
        """Return the standard error of the mean difference over a number of seeds."""
        return float(np.sqrt(self.of_seed / seeds + self.of_images))

    def freedom(self, seeds: int) -> float:
        """Return the degrees of freedom of the test with at least two seeds, as in `paired_difference`."""
        of_seeds = self.of_seed / seeds
        parts = of_seeds**2 / (seeds - 1) + self.of_images**2 / (self.images - 1)
        return float((of_seeds + self.of_images) ** 2 / parts)


def read_noise(by_seed: Sequence[float], resampled: Array, images: int) -> Noise:
    """Estimate the noise from a finished comparison, with the variances of `paired_difference`.

    Args:
        by_seed: S observed differences, at least two.
        resampled: (R,) float64, the difference under every resample.
        images: number of test frames, at least two.
    """
    of_seed = float(np.var(by_seed, ddof=1))
    variance = float(resampled.var(ddof=1)) + of_seed / len(by_seed) ** 2
    return Noise(of_seed, max(0.0, variance - of_seed / len(by_seed)), images)


def power(difference: float, noise: Noise, seeds: int) -> float:
    """Return the probability that a two-sided t-test with at least two seeds finds a true difference."""
    error = noise.error(seeds)
    if error == 0:
        return float(difference != 0)
    freedom = noise.freedom(seeds)
    limit = stats.t.ppf(1 - ALPHA / 2, freedom)
    return float(stats.nct.sf(limit, freedom, abs(difference) / error))  # the other side adds less than ALPHA / 2


def seeds_needed(difference: float, noise: Noise) -> int | None:
    """Return the smallest number of seeds, at least two, that finds a difference with probability POWER.

    Returns:
        None if more than MAX_SEEDS are needed: the test frames are too few.
    """
    if power(difference, noise, MAX_SEEDS) < POWER:
        return None
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, noise, middle) >= POWER else (middle, high)
    return high


def false_alarms(
    counts: Array,
    score: Callable[[Array], Array],
    seeds: int,
    *,
    comparisons: int = 200,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Return how often a family differs significantly from itself (A/A test).

    Each comparison draws two sets of seeds without a common one from the recorded seeds, and tests them as
    `search.compare` tests two families.

    Args:
        counts: (S, N, K) of one family, of S recorded seeds and N images, as `bootstrap` takes them.
        score: maps sums (..., K) to scores (..., M); the last one is tested.
        seeds: seeds of each side, at most S / 2.
        comparisons: number of comparisons.
        resamples: of each comparison.
        seed: of the draws.

    Returns:
        The share of comparisons with p below ALPHA, in [0, 1].

    Raises:
        ValueError: fewer than 2 * seeds seeds are recorded.
    """
    recorded, images, _ = counts.shape
    if recorded < 2 * seeds:
        raise ValueError(f"{recorded} seeds are recorded, two sides of {seeds} seeds need {2 * seeds}")
    generator, found = np.random.default_rng(seed), 0
    for number in range(comparisons):
        drawn = generator.permutation(recorded)[: 2 * seeds]
        sides = counts[drawn[:seeds]], counts[drawn[seeds:]]
        resampled = bootstrap(sides, score, resamples, seed=number)
        observed = score(sides[0].sum(1))[:, -1] - score(sides[1].sum(1))[:, -1]
        p = paired_difference(list(observed), resampled[0][:, -1] - resampled[1][:, -1], images).p
        found += p is not None and p < ALPHA
    return found / comparisons
