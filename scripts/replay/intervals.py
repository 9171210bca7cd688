"""Means over independent searches with their intervals, as text."""

from collections.abc import Sequence

from search.compare.statistics import mean_over_seeds


def mean_with_interval(values: Sequence[float], digits: int = 4) -> str:
    """Format a mean with its 95 % interval, such as `0.0123 ± 0.0011`; a single value has none."""
    mean = mean_over_seeds(values)
    half = "" if mean.high is None else f" ± {mean.high - mean.value:.{digits}f}"
    return f"{mean.value:.{digits}f}{half}"
