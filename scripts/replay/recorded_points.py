"""The points of a recording as the trials of a search."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from scipy.stats.qmc import Sobol

from fgseg.results import EpochResult
from scripts.replay.recording import Recording
from scripts.replay.scripted_search import scripted_epoch
from search.ledger.trial_source import NewTrial
from search.sampling.distributions import distributions
from search.sampling.gaussian_process import fit_gaussian_process
from search.sampling.samplers import to_share

DENSE = 4096
"""Quasi-random points among which the best value of interpolated curves is looked for, besides the recorded ones."""


class Curves:
    """Learning curves without noise over the space of a recording.

    Args:
        recording: of one space.
        interpolated: whether a Gaussian process, fitted to each epoch of all rows, gives the mIoU of a point; else it
            is that of the nearest recorded point, averaged over its seeds.

    Attributes:
        shares: (P, D) the recorded points as shares of the ranges.
    """

    def __init__(self, recording: Recording, interpolated: bool = False) -> None:
        self.recording, self._ranges = recording, distributions(recording.ranges)
        self.shares = np.array([self._to_shares(recording.point(row)) for row in range(len(recording.params))])
        epochs = range(recording.epochs) if interpolated else ()
        self._processes = [fit_gaussian_process(self.shares, recording.miou[:, epoch]) for epoch in epochs]

    def at(self, params: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return the mIoU of a point by epoch, (E,), and that of its frames, (E, F).

        The frames are those of the nearest recorded point, shifted by the difference in mIoU.
        """
        rows, _ = self.nearest(params)
        miou, frames = self.recording.miou[rows].mean(0), self.recording.frame_miou[rows].mean(0)
        if not self._processes:
            return miou, frames
        place = self._to_shares(params)[None]
        found = np.array([process.posterior(place)[0][0] for process in self._processes])
        return found, frames + (found - miou)[:, None]

    def value(self, params: Mapping[str, float]) -> float:
        """Return the mIoU of a point after the last epoch."""
        return float(self.at(params)[0][-1])

    @cached_property
    def best_value(self) -> float:
        """The largest mIoU after the last epoch of any point."""
        if not self._processes:
            return max(self.value(self.recording.point(row)) for row in range(len(self.shares)))
        dense = Sobol(self.shares.shape[1], rng=np.random.default_rng(0)).random(DENSE)
        return float(self._processes[-1].posterior(np.vstack([dense, self.shares]))[0].max())

    @cached_property
    def residuals(self) -> tuple[np.ndarray, np.ndarray]:
        """Deviations of the S seeds of the start point from their mean: (S, E) of the mIoU, (S, E, F) of the frames."""
        same = (self.recording.params == self.recording.params[0]).all(1)
        both = (self.recording.miou[same], self.recording.frame_miou[same])
        miou, frames = (curves - curves.mean(0) for curves in both)
        return miou, frames

    def nearest(self, params: Mapping[str, float]) -> tuple[np.ndarray, float]:
        """Return the rows of the nearest recorded point, and its distance: root mean square over the settings."""
        distance = np.sqrt(np.square(self.shares - self._to_shares(params)).mean(1))
        return np.flatnonzero(distance == distance.min()), float(distance.min())

    def _to_shares(self, params: Mapping[str, float]) -> np.ndarray:
        """Return a point (D,) as shares of the ranges."""
        ranges = self.recording.ranges
        return np.array([to_share(ranges[name].position(params[name]), d) for name, d in self._ranges.items()])


class RecordedPoints:
    """Gives every proposed point a learning curve, with the noise of a recorded training.

    The noise is the deviation of a seed of the start point from the mean of its seeds, drawn anew for every trial, so
    that the best observed trial is not the best point by construction.  With one recorded seed there is no noise.

    Args:
        curves: of whole trainings.
        generator: draws the noise.
        short: the same for complete schedules of fewer epochs, for trials that have one.

    Attributes:
        distances: of the proposed points from the recorded ones, see `Curves.nearest`.
    """

    def __init__(self, curves: Curves, generator: np.random.Generator, short: Curves | None = None) -> None:
        self._curves, self._generator, self._short = curves, generator, short
        self.distances: list[float] = []

    def curve(self, new: NewTrial) -> Sequence[EpochResult]:
        """Return the epochs of a trial, see `scripted_search.Curve`."""
        curves, schedule = self._curves, new.context.get("schedule")
        self.distances.append(curves.nearest(new.params)[1])
        noise, frame_noise = curves.residuals
        drawn = int(self._generator.integers(len(noise)))
        if schedule is not None:
            if self._short is None or self._short.recording.epochs != schedule:
                raise ValueError(f"no recording of complete schedules of {schedule} epochs; see --short")
            curves = self._short
        miou, frames = curves.at(new.params)
        count = len(miou)  # a short schedule ends like a whole one
        scores = zip(miou + noise[drawn, -count:], frames + frame_noise[drawn, -count:], strict=True)
        return [scripted_epoch(epoch, float(m), f.tolist()) for epoch, (m, f) in enumerate(scores, start=1)]
