"""The result of a checkpoint before any training, a record of a study that can be computed again.  Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fgseg.results import (
    mean_iou,
    named_scores,
    nan_if_none,
    nans_for_nulls,
    none_if_nan,
    nulls_for_nans,
    split_metrics,
)
from fgseg.storage.store import Store

UNTRAINED = "untrained.json"
"""Name of the file in a study's folder."""


@dataclass(frozen=True)
class UntrainedResult:
    """One evaluation of a checkpoint with its own head, its classes mapped by name to those of the study.

    `iou` maps a foreground class key to a value in [0, 1], or NaN if the class is absent from truth and prediction;
    `miou` is the mean over the values that are not NaN.
    """

    split: str
    """val for a search, test for repeats."""
    data: str
    """Fingerprint of the study's data."""
    seconds: float
    """End of the evaluation, in seconds since 1970 (UTC)."""
    miou: float
    iou: dict[str, float]
    confusion: list[list[list[int]]]
    """(N, C, C) pixel counts by image, rows truth, columns prediction."""
    boundary: list[list[list[int]]]
    """(N, C, 2) pixel counts by image, see `fgseg.metrics.boundary_iou`; empty unless the split is test."""
    thin: list[str] = field(default_factory=list)
    """Keys of the thin classes; empty in records of earlier versions, and if the label set has none."""

    @property
    def thin_miou(self) -> float:
        """Mean IoU over the thin classes that are not NaN; NaN without one."""
        return mean_iou(self.iou[key] for key in self.thin)

    @property
    def scores(self) -> dict[str, float]:
        """IoU by class key, `thin_miou` if it is known, and `miou`."""
        return named_scores(self.iou, self.thin_miou, self.miou)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON types; NaN becomes null."""
        return asdict(self) | {"iou": nulls_for_nans(self.iou), "miou": none_if_nan(self.miou)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "UntrainedResult":
        """Read a dictionary of `to_json`; raises KeyError, TypeError or AttributeError for other contents."""
        return cls(**dict(record) | {"iou": nans_for_nulls(record["iou"]), "miou": nan_if_none(record["miou"])})

    def metrics(self) -> dict[str, float]:
        """Return the result by the names of its MLflow metrics; absent classes are left out."""
        return split_metrics(self.split, self.iou, self.thin_miou, self.miou)


def read_untrained(store: Store) -> UntrainedResult | None:
    """Read the result in a study's folder; None if it is missing or damaged."""
    try:
        return UntrainedResult.from_json(json.loads(store.get(UNTRAINED)))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
