"""The schema of MLflow's runs, as pure functions of the ledger's records: names, tags, points, states."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgseg.config.errors import one_line
from search.study.location import public_address

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata

Phase = Literal["running", "finished", "interrupted"]
"""Whether a driver is at work on the study, or how the last one left it."""
STATUS = {"running": "RUNNING", "complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
"""State in the ledger -> status of the run; MLflow has none for a trial that was stopped early."""
ENDING_TAGS = ("fgseg.reason", "fgseg.pruned", "fgseg.interrupted")
"""Tags that say how a run ended, and go when it goes on."""
LONGEST_TAG = 5000
"""What every kind of MLflow store takes."""
SOURCE = {"mlflow.source.name": "fgsearch", "mlflow.source.type": "LOCAL"}
"""For MLflow's column *Source*."""
DIGEST_LENGTH = 12
"""Hexadecimal digits of the data's fingerprint that are shown; MLflow takes 36."""


class LedgerReader(Protocol):
    """What is read of search.ledger.ledger.Ledger, from the tracker's own thread."""

    def trial(self, number: int) -> "TrialRecord": ...

    def trials(self) -> "list[TrialRecord]": ...

    def best(self, among: "Sequence[TrialRecord] | None" = None) -> "TrialRecord | None": ...


@dataclass(frozen=True)
class Dataset:
    """The data that runs read, for MLflow's column *Dataset*."""

    name: str
    """The reader, and the last part of its folder where it reads one."""
    digest: str
    """First DIGEST_LENGTH digits of the fingerprint."""
    settings: dict[str, Any]
    """The `data.*` settings, without that prefix."""


def identity_tags(metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tags by which a study's runs are found."""
    return {"fgseg.study": metadata.study} | ({"fgseg.uid": metadata.uid} if metadata.uid else {})


def parent_tags(metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tags of the study's own run, without ENDING_TAGS."""
    note = f"Study {metadata.study}: {metadata.title}. Shows the best trial's metrics, one step per finished trial."
    own = {"fgseg.space": metadata.space, "fgseg.kind": "study", "mlflow.note.content": note}
    known = metadata.identity  # repeats have no sampler
    facts = {f"fgseg.{key}": str(known[key]) for key in ("version", "data", "sampler") if key in known}
    return identity_tags(metadata) | own | SOURCE | facts


def trial_tags(metadata: "StudyMetadata", record: "TrialRecord", parent_id: str) -> dict[str, str]:
    """Return the tags of a trial's run, without ENDING_TAGS."""
    changed = {"fgseg.changed_batch": json.dumps(record.overrides)} if record.overrides else {}
    return (
        identity_tags(metadata)
        | SOURCE
        | changed
        | {
            "fgseg.space": metadata.space,
            "fgseg.kind": "trial" if record.repeat is None else "repeat",
            "fgseg.trial": str(record.number),
            "fgseg.attempt": str(record.attempt),
            "mlflow.parentRunId": parent_id,
            "mlflow.note.content": f"Trial {record.number} of study {metadata.study}: {metadata.title}.",
        }
    )


def run_name(metadata: "StudyMetadata", number: int) -> str:
    """Return the name of a trial's run, such as `bas_cp/003`."""
    return f"{metadata.space}/{number:03d}"


def dataset_of(metadata: "StudyMetadata") -> Dataset | None:
    """Return the data on which the study's trials train and validate; None before its fingerprint is known."""
    settings = {k.removeprefix("data."): v for k, v in metadata.settings.items() if k.startswith("data.")}
    if "data" not in metadata.identity or not settings:
        return None
    root = public_address(str(settings.get("root") or "")).rstrip("/")
    name = " ".join(filter(None, (settings["reader"], root.rpartition("/")[2])))
    return Dataset(name, str(metadata.identity["data"])[:DIGEST_LENGTH], settings | {"root": root})


@dataclass(frozen=True)
class MetricPoint:
    """The values of some metrics at one step."""

    step: int
    seconds: float
    """When they were taken, since 1970."""
    values: dict[str, float]

    @property
    def marker(self) -> str:
        """The metric whose steps say whether a run has the point."""
        return next(iter(self.values))

    def rows(self) -> list[tuple[str, float, int, int]]:
        """Metric, value, time and step as MLflow takes them; it takes finite values only."""
        moment = milliseconds(self.seconds)
        return [(key, value, moment, self.step) for key, value in self.values.items() if math.isfinite(value)]


def epoch_points(record: "TrialRecord") -> list[MetricPoint]:
    """A trial's curves."""
    return [MetricPoint(epoch.epoch, epoch.wall_time, epoch.metrics()) for epoch in record.epochs]


def test_points(record: "TrialRecord") -> list[MetricPoint]:
    """What the test split said, at the epoch that was judged; nothing as long as it has not been asked."""
    if record.test is None:
        return []
    judged = record.epochs[record.test.epoch - 1]
    return [MetricPoint(judged.epoch, judged.wall_time, record.test.metrics())]


def trial_ending(record: "TrialRecord", phase: Phase) -> tuple[str, dict[str, str]]:
    """Status of a trial's run and the tags that say how it ended; without a driver no trial is left RUNNING."""
    if record.state == "running" and phase != "running":
        return "KILLED", {"fgseg.interrupted": "true"}
    tags = {}
    if record.state == "fail":
        tags["fgseg.reason"] = public_address(record.reason or "unknown")[:LONGEST_TAG]
    if record.state == "pruned":
        tags["fgseg.pruned"] = f"epoch {record.epochs[-1].epoch if record.epochs else 0}"
    return STATUS[record.state], tags


def study_ending(records: "Iterable[TrialRecord]", phase: Phase) -> tuple[str, dict[str, str]]:
    """The same of the parent; a study that was left with open trials counts as interrupted."""
    if phase == "running":
        return "RUNNING", {}
    if phase == "interrupted" or any(record.state == "running" for record in records):
        return "KILLED", {"fgseg.interrupted": "true"}
    return "FINISHED", {}


def last_moment(record: "TrialRecord") -> float:
    """When a trial ended, or when it was last heard of, in seconds since 1970."""
    return record.ended or (record.epochs[-1].wall_time if record.epochs else record.started)


def milliseconds(seconds: float) -> int:
    """MLflow's time; the same seconds always give the same number, or repeated points would be doubled."""
    return round(seconds * 1000)


def as_text(value: Any) -> str:
    """A setting as a param: text as it is, everything else as in JSON (null, true, 6e-05)."""
    return value if isinstance(value, str) else json.dumps(value)


def explain(error: BaseException) -> str:
    """Format the root cause of an error: its type and the first line of its message, without credentials."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return public_address(one_line(error, with_type=True, first_line=True))
