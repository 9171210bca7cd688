"""Samplers of this project that are built from Optuna's own."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SAME_POINT = 0.01
"""Fraction of a setting's range below which two values count as the same."""
Space = Mapping[str, BaseDistribution]


class Prior(NamedTuple):
    """The prior around good points, see `prior_guided.py`."""

    strength: float
    """Exponent of the prior after one finished trial; after n trials it is strength / n (beta in the source)."""
    width: float
    """Standard deviation around a centre, as a share of a setting's range."""


FIRST_PRIOR = Prior(strength=10.0, width=0.25)
"""That of the studies which did not record it."""
PRIOR = Prior(strength=3.0, width=0.25)
"""That of new trials, chosen by replays of recorded searches, see scripts/README.md."""


class SobolSampler(BaseSampler):
    """Sample one point of a scrambled Sobol sequence.

    Args:
        space: searched settings by name.
        seed: of the scrambling; must be the same for every point of a sequence.
        index: of the point in the sequence, at least 0.
    """

    def __init__(self, space: Space, seed: int, index: int) -> None:
        self._space, self._seed, self._index = dict(space), seed, index

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point; the dimensions of the sequence are the settings by name."""
        if not search_space:
            return {}
        from scipy.stats.qmc import Sobol  # takes a second to import: the settings are checked before

        sequence = Sobol(len(search_space), scramble=True, rng=self._seed)
        if self._index:
            sequence.fast_forward(self._index)
        shares = zip(sorted(search_space), sequence.random(1)[0], strict=True)
        return {name: from_share(float(share), search_space[name]) for name, share in shares}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a setting outside the space at random."""
        fresh = int(np.random.SeedSequence((self._seed, self._index)).generate_state(1)[0])
        return RandomSampler(seed=fresh).sample_independent(study, trial, param_name, param_distribution)


class AvoidingGPSampler(GPSampler):
    """Sample by the Gaussian process, but not a point that has failed: GPSampler (Optuna 5.0) ignores failed trials.

    Args:
        space: searched settings by name.
        instead: gives the point if the process has none, or one that has failed.
        seed: of the process.
    """

    def __init__(self, space: Space, instead: SobolSampler, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=0, deterministic_objective=False, warn_independent_sampling=False)
        self._space = dict(space)
        self._instead = instead
        self.used_instead = False

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the settings that all trials share and this study still searches."""
        point = super().sample_relative(study, trial, self._known_space(study, trial, search_space))
        self.used_instead = not point or self._has_failed(study, point)
        return self._instead.sample_relative(study, trial, search_space) if self.used_instead else point

    def _known_space(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, BaseDistribution]:
        """Return the part of the space that all trials share."""
        shared = super().infer_relative_search_space(study, trial)
        return {name: distribution for name, distribution in shared.items() if name in search_space}

    def _has_failed(self, study: Study, point: Mapping[str, Any]) -> bool:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(
            all(is_same_point(value, t.params.get(name, math.nan), self._space[name]) for name, value in point.items())
            for t in failed
        )


class SnappingSampler(BaseSampler):
    """Suggest the lowest value of a range in place of all values that switch a setting off, since they mean the same.

    Args:
        sampler: suggests the point.
        off_below: by name, the value below which a setting is off.
    """

    def __init__(self, sampler: BaseSampler, off_below: Mapping[str, float]) -> None:
        self._sampler, self._off_below = sampler, off_below

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the method of the sampler."""
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space of the sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of the sampler, snapped."""
        point = self._sampler.sample_relative(study, trial, search_space)
        return {name: self._snap(name, value, search_space[name]) for name, value in point.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of the sampler, snapped."""
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._snap(param_name, value, param_distribution)

    def _snap(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        is_number = isinstance(distribution, FloatDistribution | IntDistribution)
        return distribution.low if is_number and value < self._off_below.get(name, -math.inf) else value


def is_same_point(one: float, other: float, distribution: BaseDistribution) -> bool:
    """Return whether two values of a setting differ by less than SAME_POINT of its range; False for NaN."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale = math.log if distribution.log else float
    return abs(scale(one) - scale(other)) < SAME_POINT * (scale(distribution.high) - scale(distribution.low))


def from_share(share: float, distribution: BaseDistribution) -> Any:
    """Return the value of a setting at a share, in [0, 1), of its range, or of the logarithm of its range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    step = distribution.step or 0.0
    low, high = scaled_ends(distribution)
    value = (math.exp if distribution.log else float)(low + share * (high - low))
    if step:
        value = distribution.low + step * round((value - distribution.low) / step)
    return min(max(value, distribution.low), distribution.high)  # rounding may leave the range


def to_share(value: float, distribution: BaseDistribution) -> float:
    """Return the share of `from_share` that gives a value, in [0, 1]; a value outside the range counts as its end."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = scaled_ends(distribution)
    inside = min(max(value, distribution.low), distribution.high)
    return ((math.log if distribution.log else float)(inside) - low) / (high - low)


def scaled_ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Return the ends of a range, widened by half a step, or their logarithms."""
    scale = math.log if distribution.log else float
    half = (distribution.step or 0.0) / 2
    return scale(distribution.low - half), scale(distribution.high + half)
