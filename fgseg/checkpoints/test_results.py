"""What the test split said of a trained model: the record with which a repeat ends.  Needs no torch."""

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from fgseg.storage.store import Store

OUTCOME = re.compile(r"test-(\d{6})\.json")
COUNTS = re.compile(r"counts-(\d{6})\.safetensors")
SCORES = ("iou", "boundary_iou")


@dataclass(frozen=True)
class TestResult:
    """One model judged once on the test split.

    `iou` and `boundary_iou` map a foreground class key to a value in [0, 1], NaN where the class is absent from truth
    and prediction; `miou` is the mean over the values of `iou` that are not NaN.
    """

    epoch: int
    """The epoch that stands for the trial, by `train.select`."""
    attempt: int
    """Which start of the trial judged it."""
    images: int
    """Frames of the test split."""
    miou: float
    iou: dict[str, float]
    boundary_iou: dict[str, float]
    confusion: list[list[int]]
    """(7, 7) pixel counts over all images, rows truth."""
    boundary: list[list[int]]
    """(7, 2) pixel counts over all images: in both rims, in either (see fgseg/metrics/boundary_iou.py)."""
    blob: dict[str, Any]
    """Name, bytes and SHA-256 of the blob with the counts of every image."""

    @property
    def name(self) -> str:
        """The name of its manifest in the trial's store."""
        return f"test-{self.attempt:06d}.json"

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types; NaN becomes null."""
        scores = {name: {k: None if math.isnan(v) else v for k, v in getattr(self, name).items()} for name in SCORES}
        return asdict(self) | scores | {"miou": None if math.isnan(self.miou) else self.miou}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TestResult":
        """The inverse of `to_json`; raises KeyError or TypeError for anything else."""
        scores = {name: {k: math.nan if v is None else v for k, v in record[name].items()} for name in SCORES}
        return cls(**record | scores | {"miou": math.nan if record["miou"] is None else record["miou"]})

    def metrics(self) -> dict[str, float]:
        """The names and values under which people see it in MLflow; NaN where there is none."""
        named = {"test/miou": self.miou} | {f"test/iou/{key}": value for key, value in self.iou.items()}
        return named | {f"test/boundary_iou/{key}": value for key, value in self.boundary_iou.items()}


def read_test_result(store: Store) -> TestResult | None:
    """The newest outcome in a trial's store; raises ValueError, KeyError or TypeError where it is damaged."""
    names = [name for name in store.list() if OUTCOME.fullmatch(name)]
    return TestResult.from_json(json.loads(store.get(names[-1]))) if names else None
