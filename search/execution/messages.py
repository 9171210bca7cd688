"""Messages between driver and worker: jobs to the worker, reports to the driver.  Does not import Ray."""

import json
from dataclasses import dataclass, field
from typing import Any

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult


@dataclass(frozen=True)
class TrialJob:
    """One attempt of a trial, as sent to its worker."""

    number: int
    attempt: int
    settings: dict[str, Any]
    """Every setting of the model by dotted name."""
    folder: str
    """Address of the trial's folder, a path or s3://."""
    threads: int
    """CPU threads of each process."""
    gpus: float
    """GPUs of the trial; 0.25 is a quarter of the memory of one GPU."""
    on_oom: str
    """Action when memory runs out: `fail`, or `halve` the micro-batch and continue."""
    test: bool = False
    """Whether the trained model is evaluated on the test split; true for repeats, false for trials of a search."""
    processes: int = 1
    """Processes that train the model, each on its part of every batch."""
    cpus: float = 1
    """CPU cores that Ray reserves for all processes together."""
    study_folder: str | None = None
    """Address of the study's folder, which receives the result of the untrained checkpoint; None evaluates none."""
    required_environment: dict[str, str] = field(default_factory=dict)
    """Library versions by name and, as `data`, the fingerprint, which must equal the node's; empty allows any node."""


@dataclass
class TrialReport:
    """State of a trial as its worker knows it.

    Every report has the whole history, so that the ledger can be completed from the latest report alone.
    """

    number: int
    attempt: int
    epochs: list[EpochResult] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that were changed after an out-of-memory error, by dotted name."""
    notes: list[str] = field(default_factory=list)
    """Warnings for the user, such as a damaged checkpoint."""
    test: TestResult | None = None
    """Result on the test split, once a repeat is fully trained."""
    node: str | None = None
    """Ray's id of the node of several processes; None for a single process, which reports from its own node."""
    placement_group_id: str | None = None
    """Ray's id of the placement group of several processes; None for a single process."""
    error: str | None = None
    """Why the trial has failed, as one line."""
    process_error: str | None = None
    """Why the process has to end, as one line: a fault of its GPU.  The trial resumes in a new process."""
    fatal_error: str | None = None
    """Why the whole run must stop: a fault of the machine, which leaves the trial open."""

    def to_json(self) -> str:
        """Return the report as JSON text, since Ray Tune flattens a nested dictionary."""
        test = self.test.to_json() if self.test else None
        return json.dumps(vars(self) | {"epochs": [e.to_json() for e in self.epochs], "test": test})

    @classmethod
    def from_json(cls, text: str) -> "TrialReport":
        """Parse the text of `to_json`."""
        record = json.loads(text)
        test = TestResult.from_json(record["test"]) if record["test"] else None
        return cls(**{**record, "epochs": [EpochResult.from_json(e) for e in record["epochs"]], "test": test})
