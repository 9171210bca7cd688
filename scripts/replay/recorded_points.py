"""The points of a recording as the trials of a search."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from fgseg.results import EpochResult
from scripts.replay.recording import Recording
from scripts.replay.scripted_search import scripted_epoch
from search.ledger.trial_source import NewTrial
from search.sampling.distributions import distributions
from search.sampling.samplers import to_share


class RecordedPoints:
    """Gives every proposed point the learning curve of the nearest recorded one.

    Where the nearest point was recorded with several seeds, one of them is drawn.

    Args:
        recording: of whole trainings.
        generator: draws among the seeds of a point.
        short: recording of the same points with complete schedules of fewer epochs, for trials that have one.

    Attributes:
        distances: of the proposed points from the recorded ones: root mean square over the settings, as a share of
            their ranges.
    """

    def __init__(self, recording: Recording, generator: np.random.Generator, short: Recording | None = None) -> None:
        self.recording, self._generator, self._short = recording, generator, short
        self._ranges = distributions(recording.ranges)
        self._shares = np.array([self._to_shares(recording.point(row)) for row in range(len(recording.params))])
        self.distances: list[float] = []

    @cached_property
    def values(self) -> np.ndarray:
        """(P,) the mIoU after the last epoch of each row, averaged over the rows of the same point."""
        final, points = self.recording.miou[:, -1], self.recording.params
        return np.array([final[(points == point).all(1)].mean() for point in points])

    def value(self, params: Mapping[str, float]) -> float:
        """Return the value of the recorded point that is nearest to a point."""
        return float(self.values[self._nearest(params)[0]])

    def curve(self, new: NewTrial) -> Sequence[EpochResult]:
        """Return the epochs of a trial, see `scripted_search.Curve`."""
        rows = self._nearest(new.params)
        self.distances.append(float(np.linalg.norm(self._shares[rows[0]] - self._to_shares(new.params))))
        row = int(self._generator.choice(rows))
        recording = self.recording
        if new.context.get("schedule") is not None:
            if self._short is None or self._short.epochs != new.context["schedule"]:
                raise ValueError(f"no recording of complete schedules of {new.context['schedule']} epochs; see --short")
            recording, row = self._short, self._short.keys.index(recording.keys[row])
        scores = zip(recording.miou[row].tolist(), recording.frame_miou[row].tolist(), strict=True)
        return [scripted_epoch(epoch, miou, frames) for epoch, (miou, frames) in enumerate(scores, start=1)]

    def _nearest(self, params: Mapping[str, float]) -> np.ndarray:
        """Return the rows of the recorded point that is nearest to a point."""
        distance = np.linalg.norm(self._shares - self._to_shares(params), axis=1)
        return np.flatnonzero(distance == distance.min())

    def _to_shares(self, params: Mapping[str, float]) -> np.ndarray:
        """Return a point as shares of the ranges, scaled so that a distance is a root mean square over the settings."""
        shares = [to_share(self.recording.ranges[name].position(params[name]), d) for name, d in self._ranges.items()]
        return np.array(shares) / np.sqrt(len(shares))
