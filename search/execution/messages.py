"""What travels between driver and worker: a job on the way out, reports on the way back.  Knows nothing of Ray."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult


@dataclass(frozen=True)
class TrialJob:
    """One start of one trial."""

    number: int
    attempt: int
    settings: dict[str, Any]
    """Every dotted setting of the model."""
    folder: str
    """The address of the trial's folder."""
    threads: int
    """Processor threads that each of the trial's processes may use."""
    gpus: float
    """GPUs that the trial may use; 0.25 is a quarter of the memory of one."""
    on_oom: str
    """What happens when memory runs out: `fail`, or `halve` the micro-batch and go on."""
    test: bool = False
    """Whether the trained model is judged on the test split, as repeats are and trials of a search never."""
    processes: int = 1
    """Processes that train the model together, each on its part of every batch."""
    cpus: float = 1
    """Processor cores that Ray reserves for all of them."""
    required_environment: dict[str, str] = field(default_factory=dict)
    """What the node must have like the driver: versions by library and, as `data`, the fingerprint; empty: anything."""


@dataclass
class TrialReport:
    """Where a trial stands.  Every report carries the whole of it, so that the ledger can be mended from any one."""

    number: int
    attempt: int
    epochs: list[EpochResult] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that were changed under way since memory ran out."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, such as a damaged checkpoint."""
    test: TestResult | None = None
    """What the test split said, of a repeat that has been trained to its end."""
    node: str | None = None
    """Ray's id of the node on which several processes train; one process is where it reports."""
    placement_group_id: str | None = None
    """Ray's id of the placement group that several processes train in; one process needs none."""
    error: str | None = None
    """Why the trial has failed."""
    fatal_error: str | None = None
    """Why the whole run must stop, the trial staying open: a fault of the machine, not of the trial."""

    def to_json(self) -> str:
        """The report as JSON text: Ray Tune would take a dictionary apart."""
        test = self.test.to_json() if self.test else None
        return json.dumps(asdict(self) | {"epochs": [e.to_json() for e in self.epochs], "test": test})

    @classmethod
    def from_json(cls, text: str) -> "TrialReport":
        """The inverse of `to_json`."""
        record = json.loads(text)
        test = TestResult.from_json(record["test"]) if record["test"] else None
        return cls(**{**record, "epochs": [EpochResult.from_json(e) for e in record["epochs"]], "test": test})
