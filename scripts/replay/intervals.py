"""Means over independent searches with their intervals, and comparisons of two kinds of searches, as text."""

from collections.abc import Sequence

import numpy as np

from search.compare.statistics import mean_over_seeds

RESAMPLES = 1000
"""Bootstrap resamples for an interval."""


def mean_with_interval(values: Sequence[float], digits: int = 4) -> str:
    """Format a mean with its 95 % interval, such as `0.0123 ± 0.0011`; a single value has none."""
    mean = mean_over_seeds(values)
    half = "" if mean.high is None else f" ± {mean.high - mean.value:.{digits}f}"
    return f"{mean.value:.{digits}f}{half}"


def compare_trials(cold: Sequence[Sequence[float]], warm: Sequence[Sequence[float]]) -> str:
    """Format how many trials searches with a warm start need to reach the best of those without one.

    The ratio of the means has a 95 % bootstrap interval over the pairs of searches.

    Args:
        cold: regret of the selected trial after each trial, of searches without a warm start; the best is the lowest.
        warm: the same with a warm start, of more trials; one that does not reach it counts as all its trials.
    """
    before = np.array([trials_to_reach(regrets, min(regrets)) for regrets in cold])
    after = np.array([trials_to_reach(regrets, min(target)) for target, regrets in zip(cold, warm, strict=True)])
    draws = np.random.default_rng(0).integers(0, len(cold), (RESAMPLES, len(cold)))
    low, high = np.percentile(after[draws].sum(1) / before[draws].sum(1), [2.5, 97.5])
    never = sum(min(regrets) > min(target) for target, regrets in zip(cold, warm, strict=True))
    texts = (mean_with_interval(counts.tolist(), digits=1) for counts in (before, after))
    ratio = f"{after.sum() / before.sum():.2f} times ({low:.2f} to {high:.2f})"
    return f"cold {next(texts)}, warm {next(texts)}, {ratio}; {never} of {len(cold)} never reach it"


def trials_to_reach(regrets: Sequence[float], target: float) -> int:
    """Return the number of trials after which a regret is at most the target; all of them if it never is."""
    return next((count for count, regret in enumerate(regrets, start=1) if regret <= target), len(regrets))
