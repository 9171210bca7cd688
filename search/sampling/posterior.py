"""The expected value of finished trials: the posterior mean of a Gaussian process, which averages over their noise.

The value of a trial is the first objective of the search, by default the mIoU.  The highest value of many trials is in
part due to chance; the expected value is nearer to what another training with the same settings would give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.ledger.records import TrialRecord
from search.sampling.importance import within
from search.study.space import Range

MIN_TRIALS = 8
"""Number of finished trials below which noise and function cannot be told apart, and only the value itself counts."""


@dataclass(frozen=True)
class Posterior:
    """Expected values of the finished trials of a study."""

    means: Mapping[int, float]
    """By number of the trial; empty if there are too few trials."""
    noise_std: float = math.nan
    """Estimated standard deviation of the value of trainings with the same settings; NaN without means."""

    def rank(self, ranked: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Return trials by falling expected value; in the order given if there is none, and those without one last.

        Args:
            ranked: finished trials in the order of `rank_trials`.
        """
        return sorted(ranked, key=lambda record: -self.means.get(record.number, -math.inf))


def posterior_of(trials: Sequence[TrialRecord], ranges: Mapping[str, Range]) -> Posterior:
    """Fit the process to the finished trials within the ranges; the noise is estimated from them as well.

    Args:
        trials: finished trials in any order, such as those of `rank_trials`; others are left out.
        ranges: the searched settings.
    """
    usable = sorted((t for t in trials if t.value is not None and within(t.params, ranges)), key=lambda t: t.number)
    if len(usable) < MIN_TRIALS or not ranges:
        return Posterior({})
    import numpy as np

    from search.sampling.gaussian_process import fit_gaussian_process  # imports SciPy's optimiser

    x = np.array([[r.share(t.params[key]) for key, r in ranges.items()] for t in usable])
    process = fit_gaussian_process(x, np.array([t.value for t in usable], dtype=np.float64))
    means = process.posterior(x)[0].tolist()
    return Posterior({t.number: mean for t, mean in zip(usable, means, strict=True)}, process.noise_std)
