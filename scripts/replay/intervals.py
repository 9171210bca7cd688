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


def compare_trials(cold: Sequence[Sequence[float]], warm: Sequence[Sequence[float]], trials: int) -> str:
    """Format how many trials searches need, without and with a warm start, to find what those without one find.

    That is the mean of the lowest regret within `trials` trials.  It is the same for all searches: the best of one
    search is in part luck, which another search would have to repeat.  The ratio of the mean numbers of trials has a
    95 % bootstrap interval over the pairs of searches.

    Args:
        cold: regret of the selected trial after each trial, of searches without a warm start and of at least `trials`.
        warm: the same with a warm start.  A search that does not reach the target counts as all its trials.
        trials: of the searches that give the target.
    """
    target = float(np.mean([min(regrets[:trials]) for regrets in cold]))
    before, after = (np.array([trials_to_reach(regrets, target) for regrets in each]) for each in (cold, warm))
    draws = np.random.default_rng(0).integers(0, len(cold), (RESAMPLES, len(cold)))
    low, high = np.percentile(after[draws].sum(1) / before[draws].sum(1), [2.5, 97.5])
    texts = (mean_with_interval(counts.tolist(), digits=1) for counts in (before, after))
    ratio = f"{after.sum() / before.sum():.2f} times ({low:.2f} to {high:.2f})"
    never = [sum(min(regrets) > target for regrets in each) for each in (cold, warm)]
    return f"cold {next(texts)}, warm {next(texts)}, {ratio}; never: {never[0]} and {never[1]} of {len(cold)}"


def trials_to_reach(regrets: Sequence[float], target: float) -> int:
    """Return the number of trials after which a regret is at most the target; all of them if it never is."""
    return next((count for count, regret in enumerate(regrets, start=1) if regret <= target), len(regrets))
