"""Means over independent searches with their intervals, and comparisons of two kinds of searches, as text."""

from collections.abc import Sequence

import numpy as np

from search.compare.statistics import mean_over_seeds


def mean_with_interval(values: Sequence[float], digits: int = 4) -> str:
    """Format a mean with its 95 % interval, such as `0.0123 ± 0.0011`; a single value has none."""
    mean = mean_over_seeds(values)
    half = "" if mean.high is None else f" ± {mean.high - mean.value:.{digits}f}"
    return f"{mean.value:.{digits}f}{half}"


def compare_trials(cold: Sequence[Sequence[float]], warm: Sequence[Sequence[float]]) -> str:
    """Format how many trials searches with a warm start need to reach the final best of those without one.

    Args:
        cold: regret after each trial, of searches without a warm start.
        warm: the same with a warm start, of more trials; one that does not reach it counts as all its trials.
    """
    pairs = list(zip(cold, warm, strict=True))
    before = [trials_to_reach(regrets, regrets[-1]) for regrets in cold]
    after = [trials_to_reach(regrets, target[-1]) for target, regrets in pairs]
    texts = (mean_with_interval(counts, digits=1) for counts in (before, after))
    return f"cold {next(texts)}, warm {next(texts)}, {np.mean(after) / np.mean(before):.2f} times"


def trials_to_reach(regrets: Sequence[float], target: float) -> int:
    """Return the number of trials after which a regret is at most the target; all of them if it never is."""
    return next((count for count, regret in enumerate(regrets, start=1) if regret <= target), len(regrets))
