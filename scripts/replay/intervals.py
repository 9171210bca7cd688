"""Intervals of means over independent searches."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % Student-t interval (NaN for a single value)."""
    count = len(values)
    half = math.nan if count < 2 else float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return float(np.mean(values)), half


def mean_with_interval(values: Sequence[float], digits: int = 4) -> str:
    """Format a mean with its 95 % interval, such as `0.0123 ± 0.0011`."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
