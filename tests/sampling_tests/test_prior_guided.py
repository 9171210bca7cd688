"""The Gaussian process with a prior: its fit, its acquisition, its prior, and a toy search."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.stats import norm

from scripts.replay.hartmann import OPTIMUM, hartmann, regrets, run_search
from scripts.replay.scripted_search import ScriptedSearch, scripted_epoch
from search.sampling.gaussian_process import (
    GaussianProcess,
    fit_gaussian_process,
    negative_log_density,
    squared_distances,
)
from search.sampling.prior_guided import (
    Acquisition,
    PriorGuidedSampler,
    from_shares,
    log_expected_improvement,
    log_prior,
    log_weights,
    shares,
)
from search.sampling.replay import replay
from search.sampling.samplers import PRIOR, Prior, SobolSampler
from search.sampling.study_sampler import StudySampler

SPACE = {"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(0.01, 100.0, log=True), "n": IntDistribution(1, 5)}


def hill(points: np.ndarray) -> np.ndarray:
    return -np.square(points - 0.3).sum(1)


def test_gradient_of_the_density_is_right():
    generator = np.random.default_rng(0)
    x, y = generator.random((12, 3)), generator.standard_normal(12)
    squared = squared_distances(x, x)
    error = check_grad(
        lambda p: negative_log_density(p, squared, y)[0],
        lambda p: negative_log_density(p, squared, y)[1],
        generator.standard_normal(5),
    )
    assert error < 1e-4  # of finite differences


def test_process_finds_the_noise_and_averages_over_it():
    generator = np.random.default_rng(0)
    x = generator.random((60, 2))
    process = fit_gaussian_process(x, 5 + hill(x) + 0.05 * generator.standard_normal(60))
    assert process.noise_std == pytest.approx(0.05, rel=0.3)  # standard error of 60 values: 9 %
    mean, std = process.posterior(x)
    assert np.abs(mean - 5 - hill(x)).mean() < 0.025 and std.max() < 0.05


def test_process_of_equal_values_or_a_single_one_is_flat():
    for count in (1, 3):
        mean, std = fit_gaussian_process(np.random.default_rng(0).random((count, 2)), np.full(count, 0.4)).posterior(
            np.array([[0.5, 0.5]])
        )
        assert mean == pytest.approx(0.4) and np.isfinite(std).all()


def test_believed_points_lower_the_uncertainty_and_leave_the_mean():
    x = np.random.default_rng(0).random((8, 2))
    process = fit_gaussian_process(x, hill(x))
    pending = np.array([[0.9, 0.1]])
    before, after = process.posterior(pending), process.with_pending(pending).posterior(pending)
    assert after[0] == pytest.approx(before[0], abs=1e-3) and after[1] < before[1]


@pytest.mark.parametrize("z", [-30.0, -8.0, -1.0, -0.5, 2.0])
def test_expected_improvement_equals_its_integral(z: float):
    def integrand(e: float) -> float:  # divided by the density at -z, which makes it about 1
        return (z + e) * np.exp(norm.logpdf(e) - norm.logpdf(-z))

    integral = quad(integrand, -z, -z + 40)[0]
    assert log_expected_improvement(np.array([z]))[0] == pytest.approx(np.log(integral) + norm.logpdf(z), abs=1e-6)


def test_prior_is_highest_at_its_centres_and_constant_without_one():
    points = np.array([[0.2, 0.2], [0.8, 0.8], [0.5, 0.5]])
    assert log_prior(points, np.empty((0, 2)), PRIOR.width, np.empty(0)).tolist() == [0, 0, 0]
    first, second, between = log_prior(points, points[:2], PRIOR.width, np.zeros(2))
    assert first == pytest.approx(second) and between < first


def test_prior_without_the_weight_of_a_centre_is_that_of_the_others():
    points = np.random.default_rng(0).random((5, 2))
    weighted = log_prior(points, points[:2], PRIOR.width, np.array([0.0, -1e4]))
    assert weighted == pytest.approx(log_prior(points, points[:1], PRIOR.width, np.zeros(1)))


def test_centre_loses_weight_only_where_the_data_contradict_it():
    centres = np.array([[0.3, 0.3], [0.9, 0.9]])
    x = np.vstack([np.random.default_rng(0).random((6, 2)) * 0.3, centres[:1]])
    unknown = np.exp(log_weights(fit_gaussian_process(x, hill(x)), centres))
    assert unknown.max() == 1.0 and unknown.min() > 0.1
    seen = np.vstack([x, centres])
    better, worse = log_weights(fit_gaussian_process(seen, hill(seen)), centres)
    assert better == 0.0 and worse < -10
    worse, better = log_weights(fit_gaussian_process(seen, -hill(seen)), centres)
    assert better == 0.0 and worse < -10
    assert log_weights(fit_gaussian_process(seen, hill(seen)), centres[:1]).tolist() == [0.0]


def test_shares_and_values_are_each_others_inverse_and_whole_numbers_stay_whole():
    point = {"a": 0.25, "b": 10.0, "n": 4}
    back = from_shares(shares([point], SPACE)[0], SPACE)
    assert back == pytest.approx(point) and type(back["n"]) is int
    assert shares([{"a": 2.0, "b": 0.0, "n": 9}], SPACE).max() <= 1


def suggest(centres: list[dict[str, float]], trials: int) -> dict[str, float]:
    """The next point after trials whose values do not depend on their points."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    for number in range(trials):
        study.tell(study.ask(fixed_distributions=SPACE), 0.5 + 0.001 * (number % 2))
    study.sampler = PriorGuidedSampler(SPACE, SobolSampler(SPACE, 7, 0), 7, centres)
    return study.ask(fixed_distributions=SPACE).params


def test_without_evidence_the_next_point_lies_near_the_start_point_and_the_same_call_gives_the_same():
    start = {"a": 0.9, "b": 50.0, "n": 5}
    near = suggest([start], 2)
    assert abs(near["a"] - 0.9) < 0.25 and near["b"] > 5 and near["n"] >= 4
    assert suggest([start], 2) == near


def test_weight_of_the_prior_falls_with_the_number_of_finished_trials(monkeypatch: pytest.MonkeyPatch):
    exponents: list[float] = []

    class Noted(Acquisition):
        def __init__(self, process: GaussianProcess, centres: np.ndarray, width: float, exponent: float) -> None:
            exponents.append(exponent)
            super().__init__(process, centres, width, exponent)

    monkeypatch.setattr("search.sampling.prior_guided.Acquisition", Noted)
    for trials in (2, 8):
        suggest([{"a": 0.9, "b": 50.0, "n": 5}], trials)
    assert exponents == [PRIOR.strength / 2, PRIOR.strength / 8]


def test_minimising_suggests_the_same_point_as_maximising_negated_values():
    points = {}
    for direction, sign in (("maximize", 1), ("minimize", -1)):
        study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=3))
        for _ in range(6):
            trial = study.ask(fixed_distributions=SPACE)
            study.tell(trial, sign * trial.params["a"])
        study.sampler = PriorGuidedSampler(SPACE, SobolSampler(SPACE, 7, 0), 7, [])
        points[direction] = study.ask(fixed_distributions=SPACE).params
    assert points["minimize"] == points["maximize"]


@pytest.mark.slow
def test_good_start_point_helps_a_toy_search():
    assert hartmann(OPTIMUM) == pytest.approx(3.32237, abs=1e-5)
    plain, guided = (
        np.mean([regrets(run_search("auto", "good", seed, 14, noise=0.0, prior=prior))[-1] for seed in range(5)])
        for prior in (PRIOR._replace(strength=0.0), PRIOR)
    )
    assert guided < plain


def test_trials_are_replayed_with_the_prior_that_they_recorded():
    settings = {"trials": 9, "sampler": "auto", "pruner": "none", "epochs": 1, "seed": 0}
    start = {"a": 0.8, "b": 20.0, "n": 3}
    search = ScriptedSearch(StudySampler(SPACE, start, prior=Prior(1.0, 0.5), **settings), epochs=1)
    search.run(lambda new: [scripted_epoch(1, -abs(float(new.params["a"]) - 0.3))])
    assert list(replay(search.records, StudySampler(SPACE, start, **settings))) == []
    older = [replace(r, context={k: v for k, v in r.context.items() if k != "prior"}) for r in search.records]
    assert any("its point is" in line for line in replay(older, StudySampler(SPACE, start, **settings)))
