"""The contract of Optuna for samplers of third parties, on each of our samplers.

Every test gives a space of its own; hence the empty one of the samplers.
"""

from collections.abc import Callable

import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from search.sampling.prior_guided import PriorGuidedSampler
from search.sampling.samplers import AvoidingGPSampler, SnappingSampler, SobolSampler


def sobol() -> SobolSampler:
    return SobolSampler({}, seed=7, index=3)


def snapping() -> SnappingSampler:
    return SnappingSampler(sobol(), off_below={"x": 0.3})


def gaussian_process() -> AvoidingGPSampler:
    return AvoidingGPSampler({}, sobol(), seed=7)


def prior_guided() -> PriorGuidedSampler:
    return PriorGuidedSampler({}, sobol(), seed=7, centres=[])


class TestSobol(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture(params=[sobol, snapping])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return request.param


@pytest.mark.slow
class TestGaussianProcess(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """With fewer spaces than Optuna's tests have, since a suggestion takes tenths of a second."""

    @pytest.fixture(params=[gaussian_process, prior_guided])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return request.param

    @pytest.mark.parametrize(
        "distribution",
        [
            FloatDistribution(-1.0, 1.0),
            FloatDistribution(1e-7, 1.0, log=True),
            IntDistribution(3, 10),
            IntDistribution(1, 100, log=True),
        ],
    )
    def test_sample_relative_numerical(self, sampler: Callable[[], BaseSampler], distribution: BaseDistribution):
        """Optuna's test with one of 36 pairs for each kind of range that a space may have."""
        super().test_sample_relative_numerical(sampler, distribution, distribution)

    def test_sample_relative_mixed(self, sampler: Callable[[], BaseSampler]):
        """Optuna's test with one of five ranges: no space of ours has choices."""
        super().test_sample_relative_mixed(sampler, FloatDistribution(-1.0, 1.0))
