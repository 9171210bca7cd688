"""How many seeds a comparison needs, and that equal families differ no more often than they may."""

import numpy as np
import pytest
from scipy import stats

from search.compare.power import Noise, false_alarms, power, read_noise, seeds_needed
from search.compare.statistics import ALPHA


def rate(sums: np.ndarray) -> np.ndarray:
    """One score: hits over tries."""
    return sums[..., :1] / sums[..., 1:]


def recorded(seeds: int, images: int, seed: int, spread: float = 0.02) -> np.ndarray:
    """Counts (S, N, 2) of a family whose rate varies with the seed by `spread`, around that of each image."""
    random = np.random.default_rng(seed)
    of_images = np.random.default_rng(99).uniform(0.3, 0.7, images)  # the same frames for every family
    rates = of_images + random.normal(0, spread, (seeds, 1)) + random.normal(0, 0.02, (seeds, images))
    return np.stack([100 * rates, np.full_like(rates, 100.0)], -1)


def test_equal_families_differ_in_at_most_5_percent_of_200_comparisons():
    assert false_alarms(recorded(20, 40, seed=1), rate, seeds=5, resamples=300) <= 0.05


def test_equal_scores_never_differ_and_too_few_recorded_seeds_are_refused():
    counts = recorded(9, 40, seed=1)
    assert false_alarms(counts, lambda sums: 0 * rate(sums), seeds=4, comparisons=5, resamples=50) == 0
    with pytest.raises(ValueError, match="9 seeds are recorded, two sides of 5 seeds need 10"):
        false_alarms(counts, rate, seeds=5)


@pytest.mark.parametrize("seeds", [3, 7])
def test_power_is_the_share_of_simulated_tests_that_find_the_difference(seeds: int):
    noise, random = Noise(0.01**2, 0.0, images=100), np.random.default_rng(0)
    drawn = random.normal(0.012, 0.01, (20_000, seeds))
    found = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < ALPHA
    assert power(0.012, noise, seeds) == pytest.approx(found.mean(), abs=0.01)  # three standard errors of 20,000 tests


def test_seeds_needed_are_the_fewest_with_the_power():
    noise = Noise(0.01**2, 1e-6, images=200)
    needed = seeds_needed(0.01, noise)
    assert needed is not None
    assert power(0.01, noise, needed) >= 0.8 > power(0.01, noise, needed - 1)
    assert seeds_needed(0.02, noise) < needed
    assert seeds_needed(0.01, Noise(0.01**2, 0.01**2, images=200)) is None  # no seed makes up for too few frames
    assert seeds_needed(0.01, Noise(0.0, 0.0, images=200)) == 2


def test_noise_of_seeds_and_images_comes_from_the_comparison():
    by_seed = [0.01, 0.03, 0.02]
    noise = read_noise(by_seed, np.random.default_rng(0).normal(0.02, 0.05, 20_000), images=50)
    assert noise.of_seed == pytest.approx(0.0001)
    assert noise.of_images == pytest.approx(0.05**2, rel=0.05)  # two standard errors of a variance of 20,000 draws
    assert noise.error(3) == pytest.approx(np.sqrt(0.0001 / 3 + 0.05**2), rel=0.03)
