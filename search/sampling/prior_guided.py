"""A Gaussian process whose acquisition is weighted by a prior around points that are believed to be good.

Optuna's GPSampler (5.0) documents no way to change its acquisition; its posterior and its optimiser are private.
Rejecting its suggestions by the prior would cost a suggestion for each rejected point, and the accepted one would not
maximise the product.  BoTorch through optuna-integration would bring three libraries for it.  Therefore the process
is the project's own (gaussian_process.py), and the acquisition is maximised over a finite set of candidates: the chosen
point is then the same on every machine, however the last bits are rounded, so that `search.audit --replay` can repeat
it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import erfcx, log_ndtr, logsumexp
from scipy.stats import norm
from scipy.stats.qmc import Sobol

from search.sampling.gaussian_process import GaussianProcess, fit_gaussian_process
from search.sampling.samplers import PRIOR, AvoidingGPSampler, Prior, SobolSampler, Space, from_share, to_share

SPREADS = (0.1, 0.03, 0.01)
"""Standard deviations of the candidates around the best ones so far, round by round, as shares of the ranges."""
UNIFORM, NEAR = 1024, 512
"""Numbers of candidates: over the whole space, and of each round around good points."""


class PriorGuidedSampler(AvoidingGPSampler):
    """Sample by expected improvement times a prior to the power strength / finished trials.

    With several objectives, constraints or choices the sampler is AvoidingGPSampler, which handles them.

    Args:
        space, instead, seed: see AvoidingGPSampler.
        centres: points that are believed to be good, by dotted name.  See `log_weights` for several.
        prior: its strength and width.

    Source: piBO, Hvarfner et al., ICLR 2022, with the mean of normal densities around the centres as the prior.
    """

    def __init__(
        self,
        space: Space,
        instead: SobolSampler,
        seed: int,
        centres: Sequence[Mapping[str, float]],
        prior: Prior = PRIOR,
    ) -> None:
        super().__init__(space, instead, seed)
        self._seed, self._centres, self._prior = seed, list(centres), prior

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the settings that all trials share and this study still searches."""
        known = self._known_space(study, trial, search_space)
        has_choices = any(isinstance(distribution, CategoricalDistribution) for distribution in known.values())
        is_constrained = any(t.constraints for t in study.get_trials(deepcopy=False))
        if has_choices or is_constrained or len(study.directions) > 1:
            return super().sample_relative(study, trial, search_space)
        point = self._maximise(study, trial, known) if known else {}
        self.used_instead = not point or self._has_failed(study, point)
        return self._instead.sample_relative(study, trial, search_space) if self.used_instead else point

    def _maximise(self, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return the candidate with the largest acquisition; empty if no trial is COMPLETE."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not complete:
            return {}
        sign = -1.0 if study.direction is StudyDirection.MINIMIZE else 1.0
        values = np.array([sign * t.value for t in complete if t.value is not None])
        process = fit_gaussian_process(shares([t.params for t in complete], space), values)
        pending = [t.params for t in running if t.number != trial.number and space.keys() <= t.params.keys()]
        process = process.with_pending(shares(pending, space))
        centres = shares([centre for centre in self._centres if space.keys() <= centre.keys()], space)
        acquisition = Acquisition(process, centres, self._prior.width, self._prior.strength / len(complete))
        best = search_candidates(acquisition, centres, space, np.random.default_rng(self._seed))
        return from_shares(best, space)


class Acquisition:
    """Logarithm of the expected improvement, plus that of the prior times an exponent.

    The improvement counts from the largest posterior mean at an observed point, since single results are noisy.

    Args:
        process: fitted to the finished trials.
        centres: (C, D) of the prior; without one the prior is constant.
        width: of the prior.
        exponent: of the prior, at least 0.
    """

    def __init__(self, process: GaussianProcess, centres: np.ndarray, width: float, exponent: float) -> None:
        self.process, self.centres, self.width, self.exponent = process, centres, width, exponent
        self.means = process.posterior(process.x)[0]
        self.log_weights = log_weights(process, centres)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the acquisition (M,) at points (M, D)."""
        mean, std = self.process.posterior(points)
        improvement = np.log(std) + log_expected_improvement((mean - self.means.max()) / std)
        return improvement + self.exponent * log_prior(points, self.centres, self.width, self.log_weights)


def log_expected_improvement(z: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean of max(0, z + e) for a standard normal e.

    Source: Ament et al., NeurIPS 2023, equation 9, whose second form is exact for small z.
    """
    low, high = np.minimum(z, -1.0), np.maximum(z, -1.0)
    small = norm.logpdf(low) + np.log1p(np.sqrt(np.pi / 2) * low * erfcx(-low / np.sqrt(2)))
    return np.where(z < -1.0, small, np.log(norm.pdf(high) + high * np.exp(log_ndtr(high))))


def log_prior(points: np.ndarray, centres: np.ndarray, width: float, log_weights: np.ndarray) -> np.ndarray:
    """Return the logarithm of the prior's density (M,) up to a constant at points (M, D), for weights (C,)."""
    if not len(centres):
        return np.zeros(len(points))
    squared = np.square((points[:, None, :] - centres[None, :, :]) / width).sum(-1)
    density: np.ndarray = logsumexp(log_weights - 0.5 * squared, axis=1)
    return density


def log_weights(process: GaussianProcess, centres: np.ndarray) -> np.ndarray:
    """Return the logarithms (C,) of the weights of centres (C, D), which fall as the data contradict a centre.

    The centre with the largest posterior mean has weight 1, another one twice the probability that it is better.
    """
    if len(centres) < 2:
        return np.zeros(len(centres))
    mean, std = process.posterior(centres)
    best = int(np.argmax(mean))
    weights: np.ndarray = np.log(2) + norm.logsf((mean[best] - mean) / np.hypot(std[best], std))
    return weights


def search_candidates(
    acquisition: Acquisition, centres: np.ndarray, space: Space, generator: np.random.Generator
) -> np.ndarray:
    """Return the point (D,) with the largest acquisition among the candidates.

    They are quasi-random points, draws from the prior and points around the best observed ones; then, in rounds, points
    around the best candidates so far.
    """
    size = len(space)
    observed = acquisition.process.x[np.argsort(-acquisition.means, kind="stable")[:4]]
    candidates = np.vstack(
        [
            Sobol(size, scramble=True, rng=generator).random(UNIFORM),
            scatter(centres, acquisition.width, generator) if len(centres) else np.empty((0, size)),
            scatter(observed, SPREADS[0], generator),
        ]
    )
    best = np.empty((0, size))
    for spread in SPREADS:
        candidates = snap(np.vstack([best, candidates]), space)
        best = candidates[np.argsort(-acquisition(candidates), kind="stable")[:4]]
        candidates = scatter(best, spread, generator)
    candidates = snap(np.vstack([best, candidates]), space)
    winner: np.ndarray = candidates[np.argmax(acquisition(candidates))]
    return winner


def scatter(around: np.ndarray, spread: float, generator: np.random.Generator) -> np.ndarray:
    """Return NEAR points (NEAR, D) in [0, 1], normally distributed around the points (N, D) in turn."""
    chosen = around[np.arange(NEAR) % len(around)]
    return np.clip(chosen + spread * generator.standard_normal(chosen.shape), 0.0, 1.0)


def shares(points: Sequence[Mapping[str, float]], space: Space) -> np.ndarray:
    """Return points (N, D) as shares of the ranges, in the order of the space."""
    rows = [[to_share(point[name], distribution) for name, distribution in space.items()] for point in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(space))


def from_shares(point: np.ndarray, space: Space) -> dict[str, Any]:
    """Return a point (D,) of `shares` by dotted name."""
    return {name: from_share(float(share), space[name]) for name, share in zip(space, point, strict=True)}


def snap(points: np.ndarray, space: Space) -> np.ndarray:
    """Move points (N, D) to values that their settings may have, where these are whole numbers."""
    snapped = points.copy()
    for column, distribution in enumerate(space.values()):
        if isinstance(distribution, IntDistribution):
            values = (from_share(float(share), distribution) for share in points[:, column])
            snapped[:, column] = [to_share(value, distribution) for value in values]
    return snapped
