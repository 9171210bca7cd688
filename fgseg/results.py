"""`EpochResult`, the record of one epoch of one trial that trainer, ledger, MLflow and report share."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class SupersededError(Exception):
    """A newer attempt of the trial has started; writes and reports of older attempts are rejected."""


class DivergedError(Exception):
    """A loss or metric is not finite."""


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    `iou` maps a foreground class key to its IoU in [0, 1], or NaN if the class does not occur in the truth;
    `miou` is the mean over the classes that are not NaN.  `confusion` is (C, C) pixel counts, rows truth, columns
    prediction.
    """

    epoch: int
    """Counted from 1."""
    miou: float
    iou: dict[str, float]
    confusion: list[list[int]]
    loss: float
    """Mean training loss over the images of the epoch."""
    terms: dict[str, float]
    """Mean of each unweighted loss term over the images of the epoch."""
    images_per_s: float
    """Training images per second, without validation and compilation."""
    seconds: float
    """Duration of training and validation."""
    wall_time: float
    """End of the epoch, in seconds since 1970 (UTC)."""
    attempt: int
    """Number of the start of the trial that trained it, from 1."""
    compile_s: float | None = None
    """Seconds spent on compiling the training step; None if this epoch compiled nothing."""
    memory_gib: float | None = None
    """Peak host memory of the process since its start, in GiB; None in records of earlier versions."""
    gpu_memory_gib: float | None = None
    """Peak GPU memory of the process in this epoch, in GiB; None without a GPU."""
    thin: list[str] = field(default_factory=list)
    """Keys of the thin classes; empty in records of earlier versions, and if the label set has none."""
    frame_miou: list[float] = field(default_factory=list)
    """mIoU of each validation frame over the foreground classes that it contains, NaN without any; empty unless
    `train.frame_scores`."""
    boundary_iou: dict[str, float] = field(default_factory=dict)
    """Boundary IoU of each foreground class (see `fgseg.metrics.boundary_iou`), NaN where `iou` is NaN; empty unless
    `train.boundary_scores`."""
    load: dict[str, float] = field(default_factory=dict)
    """Mean load of the node in this epoch, by the names of `fgseg.node_load.measured_load`; empty in records of earlier
    versions."""

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
        frames = [none_if_nan(value) for value in self.frame_miou]
        scores = {"iou": nulls_for_nans(self.iou), "boundary_iou": nulls_for_nans(self.boundary_iou)}
        return vars(self) | scores | {"frame_miou": frames}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "EpochResult":
        """Read a dictionary of `to_json`; raises KeyError or TypeError for other contents."""
        frames = [nan_if_none(value) for value in record.get("frame_miou", ())]
        boundary = nans_for_nulls(record.get("boundary_iou", {}))
        return cls(**record | {"iou": nans_for_nulls(record["iou"]), "boundary_iou": boundary, "frame_miou": frames})

    def metrics(self) -> dict[str, float]:
        """Return the values by the names of their MLflow metrics; absent classes and unknown values are left out."""
        named = {"val/miou": self.miou, "train/loss": self.loss, "train/images_per_s": self.images_per_s}
        named |= {} if math.isnan(self.thin_miou) else {"val/thin_miou": self.thin_miou}
        named |= {f"val/iou/{key}": value for key, value in self.iou.items() if not math.isnan(value)}
        named |= {f"val/boundary/{key}": value for key, value in self.boundary_iou.items() if not math.isnan(value)}
        system = {"compile_s": self.compile_s, "memory_gib": self.memory_gib, "gpu_memory_gib": self.gpu_memory_gib}
        named |= {f"system/{name}": value for name, value in (system | self.load).items() if value is not None}
        # Under both names: charts of earlier studies use the one in `system/`.
        named |= {} if self.compile_s is None else {"train/compile_s": self.compile_s}
        return named | {f"train/loss/{term}": value for term, value in self.terms.items()}

    def validation_metrics(self) -> dict[str, float]:
        """Return those of `metrics` that validation measured, which begin with `val/`."""
        return {name: value for name, value in self.metrics().items() if name.startswith("val/")}


def none_if_nan(value: float) -> float | None:
    """Return a number as a JSON type: None for NaN."""
    return None if math.isnan(value) else value


def nan_if_none(value: float | None) -> float:
    """Return the number that `none_if_nan` was given."""
    return math.nan if value is None else value


def nulls_for_nans(values: Mapping[str, float]) -> dict[str, float | None]:
    """Apply `none_if_nan` to every value."""
    return {key: none_if_nan(value) for key, value in values.items()}


def nans_for_nulls(values: Mapping[str, float | None]) -> dict[str, float]:
    """Apply `nan_if_none` to every value."""
    return {key: nan_if_none(value) for key, value in values.items()}


def mean_iou(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if all are."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan


def named_scores(iou: Mapping[str, float], thin_miou: float, miou: float) -> dict[str, float]:
    """Return IoU by class key, `thin_miou` unless it is NaN, and `miou`."""
    return {**iou, **({} if math.isnan(thin_miou) else {"thin_miou": thin_miou}), "miou": miou}


def split_metrics(split: str, iou: Mapping[str, float], thin_miou: float, miou: float) -> dict[str, float]:
    """Return scores on a split by the names of their MLflow metrics; absent classes are left out."""
    named = {f"{split}/miou": miou, f"{split}/thin_miou": thin_miou} | {f"{split}/iou/{k}": v for k, v in iou.items()}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def select_epoch(epochs: list[EpochResult], rule: str) -> EpochResult:
    """Select the epoch whose result and checkpoint represent a trial.

    Args:
        epochs: at least one, oldest first.
        rule: the setting `train.select`: "last", or "best" for the first epoch with the highest mIoU.
    """
    return max(epochs, key=lambda e: (e.miou, -e.epoch)) if rule == "best" else epochs[-1]


def format_iou(iou: float) -> str:
    """Format an IoU or mIoU with four decimals; NaN as `absent`."""
    return "absent" if math.isnan(iou) else f"{iou:.4f}"
