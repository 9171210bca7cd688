"""Summarise a study from its ledger: trials, the best one, the start point, and the cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fgseg.checkpoints.untrained_result import UntrainedResult
from fgseg.config.settings import with_defaults
from fgseg.results import EpochResult, select_epoch
from search.ledger.catalog import find_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord, keeps, pareto_front, rank_trials
from search.ledger.study_metadata import Confirmation, Constraint
from search.ledger.study_reader import confirmed
from search.ledger.time_used import LIMITS, NOT_STARTED, TimeUsed, time_used
from search.ledger.untrained import untrained_of
from search.sampling.distributions import recorded_ranges
from search.sampling.posterior import Posterior, posterior_of
from search.study.location import StudyLocation
from search.study.objective import DEFAULT, objective_name, value_of
from search.study.plan import UNIDENTIFYING
from search.study.space import BASELINE, WEIGHT, Range

ENDINGS = {State.COMPLETE: "finished", State.PRUNED: "stopped early", State.FAIL: "failed", State.RUNNING: "open"}
"""Words for the states of trials, as shown to users."""


@dataclass(frozen=True)
class Cost:
    """Time and epochs that a study took."""

    hours: float
    """Hours of training and validation, summed over trials; epochs lost in a crash are not counted."""
    gpus: float
    """GPUs per trial; fractions are possible."""
    cpus: float
    """Processor cores per trial."""
    epochs: int
    saved: int
    """Epochs not trained because their trial was stopped early."""

    @property
    def amount(self) -> float:
        """GPU-hours, or core-hours without a GPU."""
        return self.hours * (self.gpus or self.cpus)

    @property
    def unit(self) -> str:
        """Unit of `amount`."""
        return "GPU-hours" if self.gpus else "core-hours"


@dataclass(frozen=True)
class Summary:
    """State of a study, read from its ledger.

    `start` is trial 0, the start point of the space, and `best` the first of `ranked`; both are None until finished.
    """

    study: str
    space: str
    title: str
    experiment: str
    """The config's name."""
    settings: dict[str, Any]
    """Settings of the start point by dotted name."""
    ranges: dict[str, Range]
    """The searched settings."""
    data: str
    """Fingerprint of the data set."""
    resources: dict[str, float]
    """`gpus` and `cpus` per trial in the latest run."""
    trials: list[TrialRecord]
    ranked: list[TrialRecord]
    """From `rank_trials`, a confirmed trial first."""
    start: TrialRecord | None
    best: TrialRecord | None
    untrained: UntrainedResult | None = None
    """Result of the checkpoint before any training; None if the model starts from none, or while it is not known."""
    posterior: Posterior = field(default_factory=lambda: Posterior({}))
    """Expected value of the first objective of the trials in `ranked`."""
    confirmation: Confirmation | None = None
    """Of the best trial, if it was confirmed."""
    constraint: Constraint = field(default_factory=Constraint)
    """Which trials may be the best."""
    objectives: tuple[str, ...] = DEFAULT
    """The metrics that the search maximises."""
    used: TimeUsed = NOT_STARTED
    """Time that the study has used, without the epochs that run now."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Hours that the study may take by setting, max_hours and max_gpu_hours; without limits empty."""
    limit: str = ""
    """See `StudyMetadata.limit`."""

    def epoch(self, record: TrialRecord | None) -> EpochResult | None:
        """Return a trial's selected epoch; of a trial that has not ended, the epoch that would be selected now."""
        if record is None or not record.epochs:
            return None
        return record.chosen or select_epoch(record.epochs, self.settings.get("train.select", "last"))

    def score(self, record: TrialRecord | None) -> dict[str, float]:
        """Return a trial's IoU by class key, `thin_miou` if it is known, and `miou`; empty if it has no epoch."""
        epoch = self.epoch(record)
        return epoch.scores if epoch else {}

    @property
    def objective(self) -> str:
        """Name of the first objective in texts, such as "mIoU"."""
        return objective_name(self.objectives[0])

    @property
    def allowed(self) -> list[TrialRecord]:
        """The trials of `ranked` that keep the constraint; all of them if none does."""
        return [t for t in self.ranked if self.keeps(t)] or self.ranked

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front of two objectives, of the trials in `allowed`; empty with one objective."""
        return pareto_front(self.allowed, self.objectives) if len(self.objectives) == 2 else []

    @property
    def expected_best(self) -> TrialRecord | None:
        """The trial in `allowed` with the highest expected value; None if there are too few trials to compute one."""
        return self.posterior.rank(self.allowed)[0] if self.posterior.means else None

    def keeps(self, record: TrialRecord) -> bool:
        """Return whether a finished trial keeps the constraint."""
        return keeps(record, self.constraint.floors)

    @property
    def unconstrained(self) -> TrialRecord | None:
        """The trial that would be the best without the constraint."""
        return next(iter(rank_trials(self.ranked, changed_batch=True)), None)

    def value(self, epoch: EpochResult) -> float:
        """Return the first objective after an epoch."""
        return value_of(epoch, self.objectives[0])

    def last_value(self, record: TrialRecord) -> float:
        """Return the value of a finished trial, and the first objective after the last epoch of another one."""
        return self.value(record.epochs[-1]) if record.value is None else record.value

    @property
    def untrained_value(self) -> float | None:
        """The first objective of the untrained checkpoint; None if it is not known."""
        return self.untrained.metrics().get(self.objectives[0]) if self.untrained else None

    @property
    def foreground(self) -> tuple[str, ...]:
        """Keys of the classes of the mIoU, in the order of their labels; empty before the first epoch."""
        return next((tuple(epoch.iou) for trial in self.trials for epoch in trial.epochs), ())

    @property
    def means(self) -> dict[str, str]:
        """Names of the means among the scores of trials, by key: the thin mIoU if the trials have one, the mIoU."""
        thin = any(epoch.thin for trial in self.trials for epoch in trial.epochs)
        return ({"thin_miou": "thin mIoU"} if thin else {}) | {"miou": "mIoU"}

    @property
    def classes(self) -> tuple[str, ...]:
        """Keys of all classes, in the order of their labels."""
        return tuple(key.removeprefix(WEIGHT) for key in self.settings if key.startswith(WEIGHT))

    def point(self) -> list[tuple[str, float, float]]:
        """Return (searched setting, value of the start point, value of the best trial)."""
        params = self.best.params if self.best else {}
        return [(key, r.value(r.start), params[key]) for key, r in self.ranges.items() if key in params]

    def endings(self) -> str:
        """Describe the number of trials in each state."""
        counts = {name: sum(t.state is state for t in self.trials) for state, name in ENDINGS.items()}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no trial"

    def cost(self) -> Cost:
        """Sum time and epochs over all trials."""
        budget = int(self.settings.get("train.epochs", 0))
        return Cost(
            hours=math.fsum(e.seconds for t in self.trials for e in t.epochs) / 3600,
            gpus=self.resources.get("gpus", 0),
            cpus=self.resources.get("cpus", 1),
            epochs=sum(len(t.epochs) for t in self.trials),
            saved=sum(max(0, budget - len(t.epochs)) for t in self.trials if t.state is State.PRUNED),
        )


def summarise(ledger: Ledger, location: StudyLocation | None = None) -> Summary:
    """Read a study's summary from its ledger, and the result of the untrained checkpoint if `location` is given."""
    trials, metadata = ledger.trials(), ledger.metadata
    ranked = metadata.rank(trials)
    if (selected := confirmed(trials, metadata)) is not None:
        ranked = [selected, *(t for t in ranked if t is not selected)]
    ranges = recorded_ranges(metadata)
    start = next((t for t in trials if t.number == 0 and t.state is State.COMPLETE), None)
    return Summary(
        study=metadata.study,
        space=metadata.space,
        title=metadata.title,
        experiment=metadata.experiment,
        settings=dict(metadata.settings),
        ranges=ranges,
        data=metadata.identity.get("data", ""),
        resources=dict(metadata.resources),
        trials=trials,
        ranked=ranked,
        start=start,
        best=ranked[0] if ranked else None,
        untrained=untrained_of(location, metadata) if location else None,
        posterior=posterior_of(ranked, ranges),
        objectives=tuple(metadata.objectives),
        confirmation=None if selected is None else metadata.confirmation,
        constraint=metadata.constraint,
        used=time_used(metadata, trials),
        limits={name: hours for name in LIMITS if (hours := getattr(metadata, name)) is not None},
        limit=metadata.limit,
    )


@dataclass(frozen=True)
class Baseline:
    """The baseline family's study, or the reason why it is not compared; both are empty for a baseline itself."""

    summary: Summary | None = None
    reason: str = ""


def find_baseline(location: StudyLocation, summary: Summary) -> Baseline:
    """Find the study `<config>-baseline` in the same storage, if it can be compared with `summary`."""
    if summary.space == BASELINE:
        return Baseline()
    name = f"{summary.experiment}-{BASELINE}"
    other = replace(location, study=name)
    ledger = find_ledger(other)
    if ledger is None:
        return Baseline(reason=f"There is no study {name} in this storage to compare with.")
    found = summarise(ledger)
    if found.data != summary.data:
        return Baseline(reason=f"Study {name} was made on other frames, so it is not compared.")
    if other_recipe := differing_setting(found, summary):
        return Baseline(reason=f"Study {name} has another {other_recipe}, so it is not compared.")
    return Baseline(found) if found.best else Baseline(reason=f"Study {name} has no finished trial yet.")


def differing_setting(one: Summary, other: Summary) -> str:
    """Return the first model, training or augmentation setting that differs, "" if none; searched ones are ignored."""
    free = {*one.ranges, *other.ranges, *UNIDENTIFYING}
    before, now = with_defaults(one.settings), with_defaults(other.settings)
    keys = [k for k in before if k.split(".")[0] in ("model", "train", "augment") and k not in free]
    return next((key for key in keys if before[key] != now.get(key)), "")
