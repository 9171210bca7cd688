"""Recordings: learning curves of points of a space, as numbers in one compressed file.

A recording is a NumPy archive (.npz) without pickled objects.  It contains counts and scores, and neither frames,
labels, weights nor paths.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from search.study.space import Range

HEADER = "header"
ROW_ARRAYS = ("params", "seeds", "seconds", "miou", "predicted", "hits")
"""Arrays whose first axis is the row."""


@dataclass(frozen=True)
class Recording:
    """Learning curves of P trainings (rows) of E epochs, with F validation frames and C classes.

    Attributes:
        header: JSON types.  `space`: name and ranges as in a study's identity; `settings`: of the start point, without
            paths; `foreground`: key and label of each foreground class; `versions`.
        params: (P, D) float64, the searched settings in the order of the space.
        seeds: (P,) int64, the offset that was added to `train.seed`.
        seconds: (P, E) float32, duration of each epoch.
        miou: (P, E) float64 in [0, 1], the mIoU that the training reported.
        truth: (F, C) int32, pixels of each class in each frame.
        predicted: (P, E, F, C) int32, pixels that were predicted as the class; void pixels are left out.
        hits: (P, E, F, C) int32, those of them that are right.
    """

    header: dict[str, Any]
    params: np.ndarray
    seeds: np.ndarray
    seconds: np.ndarray
    miou: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The searched settings by dotted name."""
        return {key: Range.model_validate(values) for key, values in self.header["space"]["search"].items()}

    @property
    def epochs(self) -> int:
        """Number of epochs of each row."""
        return int(self.miou.shape[1])

    @property
    def keys(self) -> list[tuple[tuple[float, ...], int]]:
        """Point and seed of each row, which identify it."""
        return [(tuple(point), int(seed)) for point, seed in zip(self.params.tolist(), self.seeds, strict=True)]

    def point(self, row: int) -> dict[str, float]:
        """Return the searched settings of a row by dotted name."""
        return dict(zip(self.ranges, self.params[row].tolist(), strict=True))

    def rows(self, numbers: np.ndarray) -> "Recording":
        """Return the rows with these numbers (N,), in this order."""
        return replace(self, **{name: getattr(self, name)[numbers] for name in ROW_ARRAYS})

    @cached_property
    def iou(self) -> np.ndarray:
        """(P, E, K) float64 IoU of the K foreground classes; NaN for a class that no frame contains."""
        return self._foreground_iou(self.hits.sum(-2), self.predicted.sum(-2), self.truth.sum(0))

    @cached_property
    def frame_miou(self) -> np.ndarray:
        """(P, E, F) float64 mean IoU over the foreground classes of each frame; NaN for a frame without any."""
        iou = self._foreground_iou(self.hits, self.predicted, self.truth)
        present = ~np.isnan(iou)
        count = present.sum(-1)
        return np.where(count > 0, np.where(present, iou, 0.0).sum(-1) / np.maximum(count, 1), np.nan)

    def _foreground_iou(self, hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return (..., K) IoU from counts (..., C); NaN for a class that does not occur in the truth."""
        labels = [label for _, label in self.header["foreground"]]
        hits, predicted, truth = (counts[..., labels].astype(np.float64) for counts in (hits, predicted, truth))
        occurs = np.broadcast_to(truth > 0, hits.shape)
        return np.where(occurs, hits / np.maximum(truth + predicted - hits, 1), np.nan)


def combine(recordings: Sequence[Recording]) -> Recording:
    """Return the rows of several recordings as one; raises ValueError if they are not of the same settings."""
    first = recordings[0]
    for other in recordings[1:]:
        if other.header != first.header or not np.array_equal(other.truth, first.truth):
            raise ValueError("the recordings are of different settings, versions or frames; record into another file")
    return replace(first, **{name: np.concatenate([getattr(r, name) for r in recordings]) for name in ROW_ARRAYS})


def save_recording(recording: Recording, path: Path) -> None:
    """Write a recording; a process that is killed leaves the earlier file or the new one."""
    arrays = {f.name: getattr(recording, f.name) for f in fields(recording) if f.name != HEADER}
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        # The order of the ranges in the header is that of the columns of params.
        np.savez_compressed(file, header=np.array(json.dumps(recording.header)), **arrays)
    unfinished.replace(path)


def load_recording(path: Path) -> Recording:
    """Read a recording; raises OSError, or ValueError or KeyError for a file that is none."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Recording(header=json.loads(str(arrays.pop(HEADER))), **arrays)
