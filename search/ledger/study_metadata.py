"""The description of a study, as the ledger returns it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.ledger.records import TrialRecord, rank_trials
from search.study.objective import DEFAULT
from search.study.plan import shorter_schedule


@dataclass(frozen=True)
class Constraint:
    """Smallest validation IoU of some classes that a best trial must have; without floors every trial is allowed."""

    floors: Mapping[str, float] = field(default_factory=dict)
    """Smallest IoU by class key."""
    max_drop: float = 0.0
    """Difference between the reference and the floors."""
    reference: str = ""
    """What the classes are compared with, for texts."""


@dataclass(frozen=True)
class Confirmation:
    """The trial that --confirm has selected, and its first objective over the repeats."""

    trial: int
    """Its number."""
    ended: int
    """Number of trials that had ended then; once others have ended, the selection counts no more."""
    mean: float
    low: float
    """Lower end of the 95 % interval of the mean."""
    seeds: int
    """Number of repeats."""


@dataclass(frozen=True)
class StudyMetadata:
    """Description of a study.  Every field is empty, or 0, until the first driver has recorded it."""

    study: str = ""
    space: str = ""
    title: str = ""
    """Name of the family in tables."""
    experiment: str = ""
    """MLflow experiment: name of the config at the first run."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the start point by dotted name."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Version, settings, space, sampler and the data's fingerprint, as JSON types; must be the same in every run."""
    uid: str = ""
    """Unique id, which distinguishes studies of the same name on a shared MLflow server."""
    budget: int = 0
    """Number of trials that the latest run was to reach."""
    max_hours: float | None = None
    """Hours that all runs of the study may take, see SearchConfig; of the latest run."""
    max_gpu_hours: float | None = None
    """GPU-hours that all trials may take; of the latest run."""
    runs: Sequence[float] = ()
    """When each run of the study began, in Unix seconds."""
    limit: str = ""
    """Setting that ended the latest run before its trials were done: max_hours or max_gpu_hours; empty if none."""
    objectives: Sequence[str] = DEFAULT
    """The metrics that the search maximises, one or two; the first one is the value of a trial."""
    reserved: int = 0
    """Trainings for which the search keeps time: the repeats of --confirm."""
    keep_checkpoints: int = 0
    """Number of best trials that have kept their weights in every run: the fewest of all runs."""
    confirmation: Confirmation | None = None
    """The trial that the latest --confirm has selected; None if there was none."""
    constraint: Constraint = field(default_factory=Constraint)
    """Which trials may be the best."""
    allow_changed_batch: bool = False
    """Whether a trial whose batch was halved may be the best."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """`cpus` and `gpus` of one trial in the latest run."""
    changes: Sequence[Mapping[str, Any]] = ()
    """Accepted changes of the identity, oldest first: `when` (Unix seconds), `changes` (one line), `ended` (numbers of
    the trials that had ended), `settings` (before the change)."""

    @property
    def epochs(self) -> int:
        """Full length of a trial, in epochs."""
        return int(self.settings.get("train.epochs", 1))

    def settings_at(self, number: int) -> dict[str, Any]:
        """Return the settings at the end of a trial, or the current ones; by dotted name, without the trial's point."""
        recorded = (change["settings"] for change in self.changes if number in change["ended"])
        return dict(next(recorded, self.settings))

    def trial_settings(self, record: TrialRecord) -> dict[str, Any]:
        """Return all settings of a trial by dotted name, as `Plan.trial_settings` returned when the trial ended."""
        own = self.settings_at(record.number) | record.params | shorter_schedule(record.schedule) | record.overrides
        return own | {"train.seed": own["train.seed"] + record.seed}

    def rank(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Return `rank_trials` with the study's constraint, and with trials of another batch if it allows them."""
        return rank_trials(records, self.allow_changed_batch, self.constraint.floors)
