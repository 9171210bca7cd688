"""What one epoch of one trial gave: the record that travels from the trainer to the ledger and everywhere after."""

import math
from dataclasses import asdict, dataclass
from typing import Any


class SupersededError(Exception):
    """A newer attempt works on this trial; what an older one writes or reports must not count."""


class DivergedError(Exception):
    """A loss or metric stopped being finite."""


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    `iou` maps a foreground class key to its IoU in [0, 1], NaN where the class is absent from truth and prediction;
    `miou` is the mean over the classes that are not NaN.  `confusion` is (7, 7) pixel counts, rows truth.
    """

    epoch: int
    """Counted from 1."""
    miou: float
    iou: dict[str, float]
    confusion: list[list[int]]
    loss: float
    """Mean of the training loss over the epoch's images."""
    terms: dict[str, float]
    """The same mean of each unweighted loss term."""
    images_per_s: float
    """Training images per second, validation left out."""
    seconds: float
    """Training and validation of this epoch."""
    wall_time: float
    """When the epoch ended, in seconds since 1970."""
    attempt: int
    """Which start of the trial produced it (1 for the first)."""
    compile_s: float | None = None
    """What compiling the step took, where it was done in this epoch; `images_per_s` leaves it out."""
    memory_gib: float | None = None
    """Most memory that the process has held at a time, the GPU's left out; None in records of earlier versions."""
    gpu_memory_gib: float | None = None
    """Most memory that the process took from its GPU in this epoch; None without a GPU."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types; NaN becomes null."""
        return asdict(self) | {"iou": {k: None if math.isnan(v) else v for k, v in self.iou.items()}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "EpochResult":
        """The inverse of `to_json`."""
        return cls(**record | {"iou": {k: math.nan if v is None else v for k, v in record["iou"].items()}})

    def metrics(self) -> dict[str, float]:
        """The names and values under which people see the epoch in MLflow and the report."""
        named = {"val/miou": self.miou, "train/loss": self.loss, "train/images_per_s": self.images_per_s}
        named |= {f"val/iou/{key}": value for key, value in self.iou.items() if not math.isnan(value)}
        system = {"compile_s": self.compile_s, "memory_gib": self.memory_gib, "gpu_memory_gib": self.gpu_memory_gib}
        named |= {f"system/{name}": value for name, value in system.items() if value is not None}
        return named | {f"train/loss/{term}": value for term, value in self.terms.items()}


def select_epoch(epochs: list[EpochResult], rule: str) -> EpochResult:
    """The epoch that stands for a trial: its last, or its first with the highest mIoU.

    Args:
        epochs: at least one, in order.
        rule: "last" or "best" (the setting `train.select`).
    """
    return max(epochs, key=lambda e: (e.miou, -e.epoch)) if rule == "best" else epochs[-1]


def format_iou(iou: float) -> str:
    """An IoU or mIoU as text; a class absent from truth and prediction has none."""
    return "absent" if math.isnan(iou) else f"{iou:.4f}"
