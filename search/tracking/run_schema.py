"""What MLflow shall say about a study and its trials, purely from the ledger's records: names, tags, states."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgseg.config.errors import one_line
from fgseg.storage.store import join
from search.study.location import public_address

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadataRows
    from search.study.location import StudyLocation

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


TrialSettings = Callable[["TrialRecord"], dict[str, Any]]
"""Gives the dotted model settings of a trial, which become its params."""


def settings_of(study: "StudyMetadataRows") -> TrialSettings:
    """Gives what `Plan.trial_settings` gave when a trial ended: the study's settings then, its own point and seed."""

    def settings(record: "TrialRecord") -> dict[str, Any]:
        own = study.settings_of(record.number) | record.params | record.overrides
        return own | {"train.seed": own["train.seed"] + record.seed}

    return settings


@dataclass(frozen=True)
class Data:
    """What runs read, for MLflow's column *Dataset*."""

    name: str
    """The reader, and the folder that it reads where it reads one."""
    digest: str
    settings: dict[str, Any]
    """The `data.*` settings, without that prefix."""


@dataclass(frozen=True)
class StudyCard:
    """What MLflow says about a study as a whole."""

    study: str
    space: str
    title: str
    experiment: str
    """The config's name."""
    artifacts: str
    """Address under which an experiment created in a database keeps its files; a server (http) decides that itself."""
    settings: dict[str, Any]
    """The resolved dotted settings."""
    facts: dict[str, str] = field(default_factory=dict)
    """Fixed facts, which become tags of the parent, prefixed `fgseg.`."""
    uid: str = ""
    """Where given, tells apart studies that have one name on a shared server."""

    trials: str = ""
    """Address of the folder of all trials' files; none of them is shown where it is empty."""

    @classmethod
    def of(cls, study: "StudyMetadataRows", location: "StudyLocation") -> "StudyCard":
        """The card of a study that has been written down, from the ledger alone."""
        known = study.identity  # repeats have no sampler
        facts: dict[str, str] = {key: str(known[key]) for key in ("version", "data", "sampler") if key in known}
        shown = {key: study.info[key] for key in ("study", "space", "title", "experiment", "settings")}
        trials = join(location.folder, "trials")
        return cls(**shown, artifacts=location.artifacts, facts=facts, uid=study.uid, trials=trials)

    def identity_tags(self) -> dict[str, str]:
        """The tags by which the study's runs are found."""
        return {"fgseg.study": self.study} | ({"fgseg.uid": self.uid} if self.uid else {})

    def parent_tags(self) -> dict[str, str]:
        """The tags of the parent, those of its ending left out."""
        note = f"Study {self.study}: {self.title}. Shows the best trial's metrics, one step per finished trial."
        own = {"fgseg.space": self.space, "fgseg.kind": "study", "mlflow.note.content": note}
        return self.identity_tags() | own | SOURCE | {f"fgseg.{key}": value for key, value in self.facts.items()}

    def trial_tags(self, record: "TrialRecord", parent_id: str) -> dict[str, str]:
        """The tags of a trial, those of its ending left out."""
        changed = {"fgseg.changed_batch": json.dumps(record.overrides)} if record.overrides else {}
        return (
            self.identity_tags()
            | SOURCE
            | changed
            | {
                "fgseg.space": self.space,
                "fgseg.kind": "trial" if record.repeat is None else "repeat",
                "fgseg.trial": str(record.number),
                "fgseg.attempt": str(record.attempt),
                "mlflow.parentRunId": parent_id,
                "mlflow.note.content": f"Trial {record.number} of study {self.study}: {self.title}.",
            }
        )

    @property
    def data(self) -> "Data | None":
        """What the study's trials train and validate on; None before its fingerprint is known."""
        settings = {k.removeprefix("data."): v for k, v in self.settings.items() if k.startswith("data.")}
        if "data" not in self.facts or not settings:
            return None
        root = public_address(str(settings.get("root") or "")).rstrip("/")
        name = " ".join(filter(None, (settings["reader"], root.rpartition("/")[2])))
        return Data(name, self.facts["data"][:DIGEST_LENGTH], settings | {"root": root})

    def trial_name(self, number: int) -> str:
        """The name of a trial's run, such as `bas_cp/003`."""
        return f"{self.space}/{number:03d}"


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


def outcome_points(record: "TrialRecord") -> list[MetricPoint]:
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
