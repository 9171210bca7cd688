"""Gaussian process regression whose noise is estimated: Matern 5/2 kernel with a length scale for each setting.

Optuna's GPSampler has a process of its own but gives no access to its posterior (Optuna 5.0); the kernel and the priors
of the kernel's parameters here are the same.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

MIN_NOISE = 1e-6
"""Smallest variance of the noise, as a share of the variance of the values."""
LOG_BOUND = 12.0
"""Largest absolute logarithm of a parameter of the kernel, which the priors keep far away."""


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process; values inside are standardised.

    Attributes:
        x: (N, D) observed points, about in [0, 1].
        y: (N,) standardised values.
        offset, scale: mean and standard deviation of the values.
        relevance: (D,) inverse squared length scales.
        variance, noise: of the function and of an observation.
    """

    x: np.ndarray
    y: np.ndarray
    offset: float
    scale: float
    relevance: np.ndarray
    variance: float
    noise: float

    @property
    def noise_std(self) -> float:
        """Estimated standard deviation of an observation around the function, in the unit of the values."""
        return math.sqrt(self.noise) * self.scale

    def posterior(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (M,) of the function without noise at the points (M, D)."""
        across = self._covariance(at, self.x)
        mean = across @ cho_solve((self._factor, True), self.y)
        explained = np.square(solve_triangular(self._factor, across.T, lower=True)).sum(0)
        std = np.sqrt(np.maximum(self.variance - explained, 1e-12))
        return self.offset + self.scale * mean, self.scale * std

    def _covariance(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the covariance (N, M) of the function between points (N, D) and (M, D)."""
        return self.variance * matern52(squared_distances(one, other) @ self.relevance)

    @cached_property
    def _factor(self) -> np.ndarray:
        """Lower Cholesky factor (N, N) of the covariance of the observations."""
        factor: np.ndarray = cholesky(self._covariance(self.x, self.x) + self.noise * np.eye(len(self.x)), lower=True)
        return factor

    def with_pending(self, pending: np.ndarray) -> "GaussianProcess":
        """Return the process as if the points (M, D) had been observed with their posterior means.

        Source: the kriging believer of Ginsbourger, Le Riche and Carraro 2010, for trials that still run.
        """
        if not len(pending):
            return self
        believed = (self.posterior(pending)[0] - self.offset) / self.scale
        return replace(self, x=np.vstack([self.x, pending]), y=np.concatenate([self.y, believed]))


def fit_gaussian_process(x: np.ndarray, y: np.ndarray) -> GaussianProcess:
    """Fit a process by the parameters of the kernel with the largest posterior density.

    Args:
        x: (N, D) points, about in [0, 1]; N and D are at least 1.
        y: (N,) finite values.
    """
    offset, scale = float(y.mean()), float(y.std()) or 1.0
    standardised = (y - offset) / scale
    squared = squared_distances(x, x)
    start = np.log([*np.ones(x.shape[1]), 1.0, 0.01])
    found = minimize(
        negative_log_density,
        start,
        (squared, standardised),
        "L-BFGS-B",
        True,
        bounds=[(-LOG_BOUND, LOG_BOUND)] * len(start),
    )
    *relevance, variance, noise = np.exp(found.x)
    return GaussianProcess(
        x, standardised, offset, scale, np.array(relevance), float(variance), float(noise) + MIN_NOISE
    )


def negative_log_density(parameters: np.ndarray, squared: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the negative logarithm of the posterior density of the kernel's parameters, and its gradient.

    Args:
        parameters: (D + 2,) logarithms of inverse squared length scales, variance and noise above MIN_NOISE.
        squared: (N, N, D) squared distances of the points along each axis.
        y: (N,) standardised values.
    """
    *_, variance, free_noise = np.exp(parameters)
    relevance = np.exp(parameters[:-2])
    noise = free_noise + MIN_NOISE
    distances = squared @ relevance
    kernel = variance * matern52(distances)
    factor = cho_factor(kernel + noise * np.eye(len(y)), lower=True)
    weights = cho_solve(factor, y)
    likelihood = -np.log(np.diag(factor[0])).sum() - 0.5 * y @ weights
    # The derivative of the likelihood by a parameter is half the trace of `inner` times that of the covariance.
    inner = np.outer(weights, weights) - cho_solve(factor, np.eye(len(y)))
    slope = variance * matern52_slope(distances)
    gradient = 0.5 * np.array(
        [
            *(np.einsum("ij,ijd->d", inner * slope, squared) * relevance),
            (inner * kernel).sum(),
            np.trace(inner) * free_noise,
        ]
    )
    prior = (
        -0.1 * (1 / relevance + relevance).sum() + math.log(variance) - variance + 0.1 * math.log(noise) - 30 * noise
    )
    prior_gradient = [*(0.1 / relevance - 0.1 * relevance), 1 - variance, (0.1 / noise - 30) * free_noise]
    return -float(likelihood + prior), -(gradient + np.array(prior_gradient))


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (N, M, D) squared distances along each axis between points (N, D) and (M, D)."""
    return np.square(one[:, None, :] - other[None, :, :])


def matern52(squared: np.ndarray) -> np.ndarray:
    """Return the Matern 5/2 correlation at squared distances of any shape."""
    root = np.sqrt(5 * squared)
    return np.exp(-root) * (1 + root + root**2 / 3)


def matern52_slope(squared: np.ndarray) -> np.ndarray:
    """Return the derivative of `matern52` by the squared distance."""
    root = np.sqrt(5 * squared)
    return -5 / 6 * np.exp(-root) * (1 + root)
