"""A study in figures, from its ledger alone: its trials, the best and the start point, and what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fgseg.results import EpochResult, select_epoch
from search.ledger.catalog import exists, open_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord, rank_trials
from search.study.location import StudyLocation
from search.study.plan import UNIDENTIFYING
from search.study.space import Range

ENDINGS = {State.COMPLETE: "finished", State.PRUNED: "stopped early", State.FAIL: "failed", State.RUNNING: "open"}
"""How people call the states of trials."""


@dataclass(frozen=True)
class Cost:
    """What a study took."""

    hours: float
    """Of training and validation, all trials together, epochs that were lost left out."""
    gpus: float
    """GPUs of a trial."""
    cpus: float
    """Processor cores of a trial."""
    epochs: int
    saved: int
    """Epochs that were not trained since their trial was stopped early."""

    @property
    def amount(self) -> float:
        """Hours of GPUs, or of cores where there was no GPU."""
        return self.hours * (self.gpus or self.cpus)

    @property
    def unit(self) -> str:
        """What `amount` counts."""
        return "GPU-hours" if self.gpus else "core-hours"


@dataclass(frozen=True)
class Summary:
    """`start` is the source's point and `best` the trial with the highest selected mIoU; None until finished."""

    study: str
    space: str
    title: str
    experiment: str
    """The config's name."""
    settings: dict[str, Any]
    """Every dotted setting of the start point."""
    ranges: dict[str, Range]
    """The searched settings."""
    data: str
    """Fingerprint of the frames."""
    resources: dict[str, float]
    """`gpus` and `cpus` of a trial, as the latest run had them."""
    trials: list[TrialRecord]
    ranked: list[TrialRecord]
    """The trials that may be the best, best first."""
    start: TrialRecord | None
    best: TrialRecord | None

    def epoch(self, record: TrialRecord | None) -> EpochResult | None:
        """The epoch that stands for a trial, or would if it ended now."""
        if record is None or not record.epochs:
            return None
        return record.chosen or select_epoch(record.epochs, self.settings.get("train.select", "last"))

    def score(self, record: TrialRecord | None) -> dict[str, float]:
        """IoU by class key, and `miou`, of a trial; empty without an epoch."""
        epoch = self.epoch(record)
        return {**epoch.iou, "miou": epoch.miou} if epoch else {}

    def point(self) -> list[tuple[str, float, float]]:
        """Rows of searched setting, the start's value and the best trial's value."""
        params = self.best.params if self.best else {}
        return [(key, r.start, params[key]) for key, r in self.ranges.items() if key in params]

    def endings(self) -> str:
        """How many trials ended in which way, in words."""
        counts = {name: sum(t.state is state for t in self.trials) for state, name in ENDINGS.items()}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no trial"

    def cost(self) -> Cost:
        """Time and epochs of all trials."""
        budget = int(self.settings.get("train.epochs", 0))
        return Cost(
            hours=math.fsum(e.seconds for t in self.trials for e in t.epochs) / 3600,
            gpus=self.resources.get("gpus", 0),
            cpus=self.resources.get("cpus", 1),
            epochs=sum(len(t.epochs) for t in self.trials),
            saved=sum(max(0, budget - len(t.epochs)) for t in self.trials if t.state is State.PRUNED),
        )


def summarise(ledger: Ledger) -> Summary:
    """The figures of a study as its ledger stands."""
    trials, info, identity = ledger.trials(), ledger.info, ledger.identity
    ranked = rank_trials(trials, info.get("allow_changed_batch", False))
    start = next((t for t in trials if t.number == 0 and t.state is State.COMPLETE), None)
    return Summary(
        study=info.get("study", ""),
        space=info.get("space", ""),
        title=info.get("title", ""),
        experiment=info.get("experiment", ""),
        settings=info.get("settings", {}),
        ranges=read_ranges(identity),
        data=identity.get("data", ""),
        resources=ledger.resources,
        trials=trials,
        ranked=ranked,
        start=start,
        best=ranked[0] if ranked else None,
    )


def read_ranges(identity: Mapping[str, Any]) -> dict[str, Range]:
    """The searched settings that a study's identity names."""
    return {key: Range.model_validate(r) for key, r in identity.get("space", {}).get("search", {}).items()}


FAMILY = "baseline"


@dataclass(frozen=True)
class Baseline:
    """The baseline's study, or why there is none to compare with; both are empty for a baseline itself."""

    summary: Summary | None = None
    reason: str = ""


def find_baseline(location: StudyLocation, summary: Summary) -> Baseline:
    """Look for the study `<config>-baseline` in the storage of another one."""
    if summary.space == FAMILY:
        return Baseline()
    name = f"{summary.experiment}-{FAMILY}"
    other = replace(location, study=name)
    if not exists(other):
        return Baseline(reason=f"There is no study {name} in this storage to compare with.")
    found = summarise(open_ledger(other))
    if found.data != summary.data:
        return Baseline(reason=f"Study {name} was made on other frames, so it is not compared.")
    if other_recipe := differing(found, summary):
        return Baseline(reason=f"Study {name} has another {other_recipe}, so it is not compared.")
    return Baseline(found) if found.best else Baseline(reason=f"Study {name} has no finished trial yet.")


def differing(one: Summary, other: Summary) -> str:
    """The first setting of model or training in which two studies differ, but for those that either searches."""
    free = {*one.ranges, *other.ranges, *UNIDENTIFYING}
    keys = [k for k in one.settings if k.split(".")[0] in ("model", "train", "augment") and k not in free]
    return next((key for key in keys if one.settings[key] != other.settings.get(key)), "")
