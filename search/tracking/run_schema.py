"""Schema of the MLflow runs: names, tags, metrics and status.  Pure functions of the ledger's records."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgseg.config.errors import one_line
from search.ledger.records import keeps, pareto_front
from search.study.location import public_address
from search.study.objective import DEFAULT

if TYPE_CHECKING:
    from fgseg.checkpoints.untrained_result import UntrainedResult
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata

Phase = Literal["running", "finished", "interrupted"]
"""State of the study: a driver runs it, or its last run finished or was interrupted."""
STATUS = {"running": "RUNNING", "complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
"""State in the ledger -> status of the run; MLflow has no status for a pruned trial."""
ENDING_TAGS = ("fgseg.reason", "fgseg.pruned", "fgseg.interrupted")
"""Tags that explain the status of an ended run; deleted when the run continues."""
MAX_TAG_CHARS = 5000
"""Characters of a tag's value; the rest is cut off.  The smallest limit of MLflow's stores."""
SOURCE = {"mlflow.source.name": "fgsearch", "mlflow.source.type": "LOCAL"}
"""Tags of MLflow's column *Source*."""
DIGEST_LENGTH = 12
"""Leading hexadecimal digits of the data's fingerprint that are logged; MLflow accepts at most 36."""


class LedgerReader(Protocol):
    """The methods of `search.ledger.ledger.Ledger` that the tracker calls, from its own thread."""

    def trial(self, number: int) -> "TrialRecord": ...

    def trials(self) -> "list[TrialRecord]": ...

    def best(self, among: "Sequence[TrialRecord] | None" = None) -> "TrialRecord | None": ...


@dataclass(frozen=True)
class Dataset:
    """Data set of a run, for MLflow's column *Dataset*."""

    name: str
    """Name of the reader, and the last part of its folder if it reads one."""
    digest: str
    """First DIGEST_LENGTH digits of the fingerprint."""
    settings: dict[str, Any]
    """Settings of the section `data`, without the prefix `data.`."""


def identity_tags(metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tags that identify the runs of a study."""
    return {"fgseg.study": metadata.study} | ({"fgseg.uid": metadata.uid} if metadata.uid else {})


def parent_tags(metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tags of the study's parent run, without ENDING_TAGS."""
    note = f"Study {metadata.study}: {metadata.title}. Shows the best trial's metrics, one step per finished trial."
    own = {"fgseg.space": metadata.space, "fgseg.kind": "study", "mlflow.note.content": note}
    identity = metadata.identity  # repeats have no sampler
    origin = {f"fgseg.{key}": str(identity[key]) for key in ("version", "data", "sampler") if key in identity}
    goal = {"fgseg.objective": ",".join(metadata.objectives)} if tuple(metadata.objectives) != DEFAULT else {}
    limits = {"max_hours": metadata.max_hours, "max_gpu_hours": metadata.max_gpu_hours}
    budget = {f"fgseg.{name}": f"{hours:g}" for name, hours in limits.items() if hours is not None}
    return identity_tags(metadata) | own | SOURCE | origin | goal | constraint_tags(metadata) | budget


def constraint_tags(metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tag with the smallest IoU of the classes that a study keeps; empty without a constraint."""
    floors = metadata.constraint.floors
    text = ", ".join(f"{key} {floor:.4f}" for key, floor in floors.items())
    return {"fgseg.keep": f"{text} ({metadata.constraint.reference})"} if floors else {}


def allowed_trials(records: "Iterable[TrialRecord]", metadata: "StudyMetadata") -> "list[TrialRecord]":
    """Return the finished trials that keep the constraint, by falling value; all of them if none does."""
    ranked = metadata.rank(records)
    return [record for record in ranked if keeps(record, metadata.constraint.floors)] or ranked


def front_tag(records: "Iterable[TrialRecord]", metadata: "StudyMetadata") -> dict[str, str]:
    """Return the tag with the trials of the Pareto front; empty with one objective."""
    if len(metadata.objectives) == 1:
        return {}
    front = pareto_front(allowed_trials(records, metadata), metadata.objectives)
    return {"fgseg.pareto_front": ", ".join(str(record.number) for record in front)}


def trial_tags(metadata: "StudyMetadata", record: "TrialRecord", parent_id: str) -> dict[str, str]:
    """Return the tags of a trial's run, without ENDING_TAGS."""
    changed = {"fgseg.changed_batch": json.dumps(record.overrides)} if record.overrides else {}
    return (
        identity_tags(metadata)
        | SOURCE
        | changed
        | {
            "fgseg.space": metadata.space,
            "fgseg.kind": kind_of(record),
            "fgseg.trial": str(record.number),
            "fgseg.attempt": str(record.attempt),
            "mlflow.parentRunId": parent_id,
            "mlflow.note.content": f"Trial {record.number} of study {metadata.study}: {metadata.title}.",
        }
    )


def kind_of(record: "TrialRecord") -> str:
    """Return the tag `fgseg.kind` of a trial's run and model."""
    return "trial" if record.repeat is None else "repeat"


def checkpoint_tags(metadata: "StudyMetadata", result: "UntrainedResult", parent_id: str) -> dict[str, str]:
    """Return the tags of the run of the untrained checkpoint."""
    return (
        identity_tags(metadata)
        | SOURCE
        | {
            "fgseg.space": metadata.space,
            "fgseg.kind": "checkpoint",
            "fgseg.evaluated": str(milliseconds(result.seconds)),
            "mlflow.parentRunId": parent_id,
            "mlflow.note.content": f"The checkpoint of study {metadata.study} before any training, its classes mapped "
            "by name.",
        }
    )


def checkpoint_settings(metadata: "StudyMetadata") -> dict[str, Any]:
    """Return the settings that describe the untrained checkpoint, by dotted name: those of model and data."""
    return {key: value for key, value in metadata.settings.items() if key.startswith(("model.", "data."))}


def run_name(metadata: "StudyMetadata", number: int) -> str:
    """Return the name of a trial's run, such as `bas_cp/003`."""
    return f"{metadata.space}/{number:03d}"


def dataset_of(metadata: "StudyMetadata") -> Dataset | None:
    """Return the data set of the study's trials; None before its fingerprint is recorded."""
    settings = {k.removeprefix("data."): v for k, v in metadata.settings.items() if k.startswith("data.")}
    if "data" not in metadata.identity or not settings:
        return None
    root = public_address(str(settings.get("root") or "")).rstrip("/")
    name = " ".join(filter(None, (settings["reader"], root.rpartition("/")[2])))
    return Dataset(name, str(metadata.identity["data"])[:DIGEST_LENGTH], settings | {"root": root})


@dataclass(frozen=True)
class MetricPoint:
    """Values of several metrics at one step."""

    step: int
    seconds: float
    """Time of the measurement in seconds since 1970."""
    values: dict[str, float]

    @property
    def marker(self) -> str:
        """The last metric with a finite value: a run that has it at this step has the whole point."""
        return self.rows()[-1][0]

    def rows(self) -> list[tuple[str, float, int, int]]:
        """Return (metric, value, milliseconds, step) of every finite value, as MLflow's `Metric` takes them.

        MLflow's comparison of runs begins with the metric that was logged first.
        """
        moment = milliseconds(self.seconds)
        return [(key, value, moment, self.step) for key, value in self.values.items() if math.isfinite(value)]


def epoch_points(record: "TrialRecord") -> list[MetricPoint]:
    """Return the training and validation metrics of a trial, one point per epoch."""
    return [MetricPoint(epoch.epoch, epoch.wall_time, epoch.metrics()) for epoch in record.epochs]


def test_points(record: "TrialRecord") -> list[MetricPoint]:
    """Return the test metrics of a trial, at the step of the evaluated epoch; empty before the evaluation."""
    if record.test is None:
        return []
    evaluated = record.epochs[record.test.epoch - 1]
    return [MetricPoint(evaluated.epoch, evaluated.wall_time, record.test.metrics())]


def model_points(record: "TrialRecord") -> list[MetricPoint]:
    """Return the metrics of a COMPLETE trial's model: validation in its selected epoch, and the test metrics."""
    assert record.chosen is not None
    validation = MetricPoint(record.chosen.epoch, record.chosen.wall_time, record.chosen.validation_metrics())
    return [validation, *test_points(record)]


def outcome_points(record: "TrialRecord") -> list[MetricPoint]:
    """Return the outcome of an ended trial, at the step of its last epoch; empty without an epoch.

    MLflow's table of runs shows the last value of a metric; `best/` and `selected/` have one value only.
    """
    if record.is_open or not record.epochs:
        return []
    return [MetricPoint(record.epochs[-1].epoch, last_moment(record), record.outcome())]


def study_points(
    best: "TrialRecord", records: "Iterable[TrialRecord]", untrained: "UntrainedResult | None"
) -> list[MetricPoint]:
    """Return the metrics of the parent run after the latest end of a trial.

    Args:
        best: the best trial, COMPLETE.
        records: all trials of the study.
        untrained: result of the untrained checkpoint, if there is one.

    Returns:
        Two points at the step of the number of ended trials: the validation metrics of the best trial; and its
        outcome with its gains in mIoU over trial 0, the start point, and over the untrained checkpoint, if known.
    """
    assert best.chosen is not None
    ended = [record for record in records if not record.is_open]
    start = next((record.chosen for record in ended if record.number == 0 and record.repeat is None), None)
    gains = {} if start is None else {"gain/over_start": best.chosen.miou - start.miou}
    if untrained and untrained.split == "val":
        gains["gain/over_checkpoint"] = best.chosen.miou - untrained.miou
    moment = max(map(last_moment, ended))
    groups = best.chosen.validation_metrics(), best.outcome() | gains
    return [MetricPoint(len(ended), moment, values) for values in groups]


def trial_ending(record: "TrialRecord", phase: Phase) -> tuple[str, dict[str, str]]:
    """Return status and ENDING_TAGS of a trial's run; an open trial is KILLED unless a driver runs the study."""
    if record.is_open and phase != "running":
        return "KILLED", {"fgseg.interrupted": "true"}
    tags = {}
    if record.state == "fail":
        tags["fgseg.reason"] = public_address(record.reason or "unknown")[:MAX_TAG_CHARS]
    if record.state == "pruned":
        tags["fgseg.pruned"] = f"epoch {record.epochs[-1].epoch if record.epochs else 0}"
    return STATUS[record.state], tags


def study_ending(records: "Iterable[TrialRecord]", phase: Phase) -> tuple[str, dict[str, str]]:
    """Return status and ENDING_TAGS of the parent run; a study with open trials and no driver is interrupted."""
    if phase == "running":
        return "RUNNING", {}
    if phase == "interrupted" or any(record.is_open for record in records):
        return "KILLED", {"fgseg.interrupted": "true"}
    return "FINISHED", {}


def last_moment(record: "TrialRecord") -> float:
    """Return the time of a trial's end, last epoch or start, the first known; seconds since 1970."""
    return record.ended or (record.epochs[-1].wall_time if record.epochs else record.started)


def milliseconds(seconds: float) -> int:
    """Convert seconds to the milliseconds of MLflow; equal input gives equal output, so that points are not doubled."""
    return round(seconds * 1000)


def as_text(value: Any) -> str:
    """Format a setting as a param: text unchanged, other values as JSON (null, true, 6e-05)."""
    return value if isinstance(value, str) else json.dumps(value)


def explain(error: BaseException) -> str:
    """Format the root cause of an error: its type and the first line of its message, without credentials."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return public_address(one_line(error, with_type=True, first_line=True))
