"""Statistics against cases whose answer is known."""

import numpy as np
import pytest

from search.compare.statistics import Estimate, bootstrap, holm, mean_over_seeds, paired_difference, ranks


def rate(sums: np.ndarray) -> np.ndarray:
    """One score: hits over tries."""
    return sums[..., :1] / sums[..., 1:]


def judged(rates: np.ndarray, images: int = 40) -> np.ndarray:
    """Counts (S, N, 2) of families whose rate in image n under seed s is rates (S, N)."""
    return np.stack([rates * 100, np.full_like(rates, 100.0)], -1).reshape(len(rates), images, 2)


def compare(first: np.ndarray, second: np.ndarray, resamples: int = 400, seed: int = 0) -> Estimate:
    a, b = bootstrap([first, second], rate, resamples, seed)
    by_seed = (rate(first.sum(1)) - rate(second.sum(1)))[:, 0]
    return paired_difference(by_seed, (a - b)[:, 0], first.shape[1])


def test_t_interval_of_three_seeds_is_the_one_of_the_tables():
    estimate = mean_over_seeds([0.5, 0.6, 0.7])
    assert estimate.value == pytest.approx(0.6)
    assert estimate.high - estimate.value == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-5)


def test_single_seed_has_no_interval():
    assert mean_over_seeds([0.5]) == Estimate(0.5)
    one = judged(np.full((1, 40), 0.3))
    assert compare(one, one / 2).p is None


def test_class_that_is_absent_under_one_seed_is_left_out_there():
    assert mean_over_seeds([0.5, float("nan"), 0.7]).value == pytest.approx(0.6)
    assert np.isnan(mean_over_seeds([float("nan")] * 3).value)


def test_identical_families_differ_by_nothing_with_p_1():
    counts = judged(np.random.default_rng(1).uniform(0.2, 0.8, (3, 40)))
    assert compare(counts, counts) == Estimate(0.0, 0.0, 0.0, 1.0)


def test_families_that_share_the_luck_of_their_seeds_are_told_apart_and_unpaired_ones_are_not():
    luck = np.repeat(np.random.default_rng(2).normal(0.5, 0.1, (3, 1)), 40, axis=1)
    better = compare(judged(luck + 0.02), judged(luck))
    assert better.p < 1e-6
    assert compare(judged(luck[::-1] + 0.02), judged(luck)).p > 0.3


def test_resamples_are_the_same_for_the_same_seed():
    counts = judged(np.random.default_rng(3).uniform(0.2, 0.8, (3, 40)))
    first, again, other = (bootstrap([counts], rate, 50, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_standard_error_of_one_seed_is_that_of_the_mean_over_images():
    rates = np.random.default_rng(4).uniform(0.2, 0.8, (1, 40))
    (resampled,) = bootstrap([judged(rates)], rate, 20000, 0)
    # 20,000 resamples know a standard deviation to about 0.5 %.
    assert resampled.std() == pytest.approx(rates.std() / np.sqrt(40), rel=0.03)


def test_score_without_a_value_in_a_resample_is_nan_there_and_left_out():
    counts = judged(np.full((2, 40), 0.5))
    counts[:, 1:] = 0  # one image alone holds the class
    with np.errstate(invalid="ignore"):
        (resampled,) = bootstrap([counts], rate, 200, 0)
    assert 0 < np.isnan(resampled).sum() < 200
    assert paired_difference([0.1, 0.1], resampled[:, 0], 40).p == 0.0


def simulate(generator: np.random.Generator, truth: float, images: float) -> Estimate:
    """A comparison of three seeds in which seeds, images and their mixture bring luck of these deviations."""
    luck = generator.normal(0, images, (2, 1, 40)) + generator.normal(0, 0.02, (2, 3, 1))
    rates = 0.5 + luck + generator.normal(0, 0.05, (2, 3, 40))
    rates[0] += truth
    return compare(judged(rates[0]), judged(rates[1]), resamples=300)


@pytest.mark.parametrize("images", [0.001, 0.03, 0.1])
def test_intervals_hold_the_truth_about_as_often_as_they_say(images: float):
    generator = np.random.default_rng(5)
    held = [e.low <= 0.01 <= e.high for e in (simulate(generator, 0.01, images) for _ in range(200))]
    # 200 cases know a rate of 95 % to 1.5 %; three of those below and above.
    assert 0.905 <= np.mean(held) <= 0.995


def test_no_difference_is_rarely_called_one():
    generator = np.random.default_rng(6)
    assert np.mean([simulate(generator, 0.0, 0.03).p < 0.05 for _ in range(200)]) <= 0.095


def test_interval_counts_the_seeds_luck_that_a_resample_hides():
    rates = np.array([0.4, 0.5, 0.6])[:, None].repeat(40, 1)
    estimate = compare(judged(rates), judged(np.full((3, 40), 0.45)))
    # Without luck of the images it is the paired t-test; 400 resamples know a variance to about 7 %.
    assert estimate.high - estimate.value == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=0.2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, None]) == [0.02, None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_equal_values_share_the_better_rank_and_none_has_none():
    assert ranks([0.5, 0.7, 0.7, None, 0.1]) == [3, 1, 1, None, 4]
