"""Documents that the commands print with `--json`; their names stay the same from version to version.

Settings have the dotted names of `--set`; metrics have the names of MLflow.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from search.ledger.records import State
from search.ledger.study_metadata import Confirmation
from search.study.space import Range


class Document(BaseModel):
    """Base of all documents: its fields are all there are."""

    model_config = ConfigDict(extra="forbid")


class SpaceDocument(Document):
    """A search space: an entry of `search.run --list --json`."""

    space: str
    title: str
    searched: dict[str, Range]
    """Ranges by setting."""


class StudyDocument(Document):
    """A study of a storage: an entry of `search.run --list-studies --json`."""

    study: str
    trials: dict[str, int] | None
    """Number of trials by state: running, complete, pruned, fail; null if the ledger cannot be read."""
    best_trial: int | None
    objectives: list[str]
    """Metrics that the search maximises, one or two; the first one decides about the best trial."""
    metrics: dict[str, float]
    """Metrics of the best trial, as MLflow's table shows them; empty while no trial is complete."""


class SplitDocument(Document):
    """Frames of one split."""

    frames: int
    pixel_share: dict[str, float]
    """Share of each class among the pixels that are not void, in [0, 1]."""
    class_frames: dict[str, int]
    """Number of frames that hold the class."""


class DataDocument(Document):
    """The data set of a plan."""

    splits: dict[str, SplitDocument]
    """Training and validation frames; empty if the data are not read, see `note`."""
    picture: str | None
    """Path of a PNG file that shows training frames with their labels."""
    note: str
    """Why the data are not read; empty if they are."""


class PlanDocument(Document):
    """Plan of a search, as `search.run --dry-run --json` prints it."""

    study: str
    space: str
    title: str
    storage: str
    """Folder of the study."""
    ledger_url: str
    tracking_uri: str
    exists: bool
    """Whether the study has been started before."""
    new_trials: int
    """Trials that would be started, without the repeats of `--confirm`."""
    repeats: int
    """Repeats of `--confirm` that follow, of which those are trained that do not exist yet."""
    open_trials: int
    """Trials that would be continued."""
    ended_trials: int
    settings: dict[str, Any]
    """Settings of the start point."""
    search: dict[str, Any]
    """Settings of the search, by the name of their flag with underscores."""
    searched: dict[str, Range]
    """Ranges by setting."""
    gpu_sharing: str
    """How trials that share a GPU use NVIDIA MPS; empty where none share one."""
    data: DataDocument


class TrialDocument(Document):
    """A trial of `search.status --json`."""

    trial: int
    state: State
    attempt: int
    epochs: int
    """Number of epochs done."""
    params: dict[str, float]
    """Searched settings."""
    metrics: dict[str, float]
    """As MLflow's table shows them: those of the last epoch, and `best/` and `selected/` of an ended trial."""
    reason: str | None
    """Why the trial failed or was stopped early."""


class DriverDocument(Document):
    """The process that runs a study."""

    host: str
    pid: int


class TimeDocument(Document):
    """Hours that a study has used in all its runs, and those that it has left."""

    hours: float
    """Wall-clock hours."""
    hours_left: float | None
    """Of `--max-hours` of the latest run; null without this limit."""
    gpu_hours: float
    """GPU-hours of training and validation; 0 without GPUs."""
    gpu_hours_left: float | None
    """Of `--max-gpu-hours` of the latest run; null without this limit."""


class StatusDocument(Document):
    """State of a study: `search.status --json`."""

    study: str
    space: str
    tracking_uri: str
    driver: DriverDocument | None
    budget: int
    """Trials that the latest run was to reach."""
    epochs: int
    """Length of a trial."""
    objectives: list[str]
    """Metrics that the search maximises, one or two; the first one decides about the best trial."""
    floors: dict[str, float]
    """Validation IoU that the best trial must have at least, by class of `--keep`."""
    time: TimeDocument
    seconds_left: float | None
    """Estimate until the trials or the time are used up; null if no driver runs or before the second epoch."""
    forecast_trials: int | None
    """Trials that the study is expected to have then; null if no driver runs or before the second end of a trial."""
    trial_seconds: float | None
    """Mean duration of the finished trials; null before the first one."""
    training_seconds: float | None
    """The part of it that is training and validation; the rest is fixed cost."""
    best_trial: int | None
    confirmation: Confirmation | None
    """How `--confirm` selected the best trial; null if it did not, or if trials have ended since."""
    checkpoint: dict[str, float] | None
    """Metrics of the untrained checkpoint, if there is one."""
    trials: list[TrialDocument]


class RepeatsDocument(Document):
    """Repeats of a family, in a planned comparison."""

    space: str
    title: str
    study: str
    """Study that stores the repeats."""
    new: int
    """Repeats that would be started."""
    open: int
    """Repeats that would be continued."""
    ended: int
    point: dict[str, float]
    """Searched settings of the repeats."""


class PowerDocument(Document):
    """How many seeds a comparison needs to find a difference in mIoU."""

    difference: float
    seeds: int | None
    """Seeds that find it with a probability of 80 %; null if no number does with these test frames."""
    probability: float | None
    """Probability with which the planned seeds find it; null for a single seed."""


class ComparisonPlanDocument(Document):
    """Plan of a comparison: `search.compare --dry-run --json`."""

    name: str
    point: str
    """`start` of each space, or `best` of each study."""
    seeds: int
    """Repeats of each family; with `--seeds auto` those at the beginning."""
    epochs: int
    """Length of a repeat."""
    trainings: int
    """Repeats of all families that would be started or continued."""
    families: list[RepeatsDocument]
    noise: float | None
    """Standard deviation between seeds of a difference in mIoU; null before two families have two seeds in common."""
    power: list[PowerDocument]
    """Empty while the noise is not known."""


def print_document(document: Document | Sequence[Document]) -> int:
    """Print a document, or a list of them, on standard output; returns exit code 0."""
    print(TypeAdapter(Any).dump_json(document, indent=1).decode())
    return 0
