"""The result of a trained model on the test split, the last record of a repeat.  Needs no torch."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from fgseg.checkpoints.manifest import Blob
from fgseg.results import mean_iou, nan_if_none, nans_for_nulls, none_if_nan, nulls_for_nans
from fgseg.storage.store import Store

TEST_RESULT = re.compile(r"test-(\d{6})\.json")
COUNTS = re.compile(r"counts-(\d{6})\.safetensors")
"""Names of test results and of their counts per image; the group is the attempt that wrote them."""
SCORES = ("iou", "boundary_iou")


@dataclass(frozen=True)
class TestResult:
    """One evaluation of one model on the test split.

    `iou` and `boundary_iou` map a foreground class key to a value in [0, 1], or NaN if the class does not occur
    in the truth; `miou` is the mean over the values of `iou` that are not NaN.
    """

    epoch: int
    """The evaluated epoch, selected by `train.select`; counted from 1."""
    attempt: int
    """Number of the start of the trial that evaluated it, from 1."""
    images: int
    """Frames of the test split."""
    miou: float
    iou: dict[str, float]
    boundary_iou: dict[str, float]
    confusion: list[list[int]]
    """(C, C) pixel counts over all images, rows truth, columns prediction."""
    boundary: list[list[int]]
    """(C, 2) pixel counts over all images: in both rims, in at least one (see `fgseg.metrics.boundary_iou`)."""
    blob: Blob
    """The safetensors file with the counts per image: `confusion` (N, C, C) int32 and `boundary` (N, C, 2) int32."""
    thin: list[str] = field(default_factory=list)
    """Keys of the thin classes; empty in records of earlier versions, and if the label set has none."""

    @property
    def thin_miou(self) -> float:
        """Mean IoU over the thin classes that are not NaN; NaN without one."""
        return mean_iou(self.iou[key] for key in self.thin)

    @property
    def name(self) -> str:
        """File name of the result in the trial's store."""
        return f"test-{self.attempt:06d}.json"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON types; NaN becomes null."""
        scores = {name: nulls_for_nans(getattr(self, name)) for name in SCORES}
        return asdict(self) | scores | {"miou": none_if_nan(self.miou)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TestResult":
        """Read a dictionary of `to_json`; raises KeyError or TypeError for other contents."""
        scores = {name: nans_for_nulls(record[name]) for name in SCORES}
        return cls(**record | scores | {"miou": nan_if_none(record["miou"]), "blob": Blob(**record["blob"])})

    def metrics(self) -> dict[str, float]:
        """Return the result by the names of its MLflow metrics; NaN for classes that do not occur in the truth."""
        named = {"test/miou": self.miou} | ({"test/thin_miou": self.thin_miou} if self.thin else {})
        named |= {f"test/iou/{key}": value for key, value in self.iou.items()}
        return named | {f"test/boundary_iou/{key}": value for key, value in self.boundary_iou.items()}


def read_test_result(store: Store) -> TestResult | None:
    """Read the newest test result in a trial's store, or return None.

    Raises:
        ValueError, KeyError, TypeError: the file is damaged.
    """
    names = [name for name in store.list() if TEST_RESULT.fullmatch(name)]
    return TestResult.from_json(json.loads(store.get(names[-1]))) if names else None
