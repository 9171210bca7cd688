"""Records of trials as the ledger returns them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult, select_epoch
from search.study.objective import value_of

if TYPE_CHECKING:
    from sqlalchemy import RowMapping


START_POINT = 0
"""Number of the trial at the space's start point, with which every other trial is compared; it is never pruned."""


class State(StrEnum):
    """State of a trial: PRUNED if stopped early, FAIL if broken; neither ever becomes COMPLETE."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"


@dataclass(frozen=True)
class TrialAttempt:
    """One start of one trial, sent to a worker."""

    number: int
    attempt: int
    """1 at the trial's first start; only the latest attempt may write."""
    params: dict[str, float | int]
    """Searched settings by dotted name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that an earlier attempt had to change, by dotted name."""
    given_seed: int | None = None
    """See `TrialRecord.given_seed`."""
    schedule: int | None = None
    """See `TrialRecord.schedule`."""

    @property
    def seed(self) -> int:
        """Offset added to `train.seed`."""
        return seed_of(self.number, self.given_seed)


@dataclass(frozen=True)
class EpochEvent:
    """When an epoch was recorded, and what the pruner decided after it."""

    seq: int
    """Number of the write that recorded the epoch."""
    attempt: int
    """Attempt that reported the epoch; a later one than that of its training where it was read from a checkpoint."""
    stop: bool | None = None
    """The pruner's decision; None: it decided nothing."""
    stop_seq: int | None = None
    """Number of the write that recorded the decision."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as stored in the ledger."""

    number: int
    state: State
    params: dict[str, float | int]
    """Searched settings by dotted name."""
    attempt: int
    """Number of the latest start."""
    failures: int
    """Number of attempts whose process died."""
    epochs: list[EpochResult]
    """Ascending, from epoch 1."""
    value: float | None
    """The study's first objective, by default `val/miou`, in the selected epoch of a COMPLETE trial."""
    reason: str | None
    """Reason of FAIL or PRUNED."""
    started: float
    """Unix seconds."""
    ended: float | None
    """Unix seconds; None while the trial runs."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings changed after the trial ran out of memory; such a trial is not compared with others."""
    repeat: int | None = None
    """The seed of a repeat; None in a search."""
    length: int = 0
    """Number of epochs of a whole trial when the latest attempt started; see `schedule`."""
    selected: int | None = None
    """The epoch of a COMPLETE trial that `train.select` selects."""
    test: TestResult | None = None
    """Result of a repeat on the test split; None in a search, which never uses that split."""
    origin: str = ""
    """What chose the params: start, warm (another study's best), sobol, gp, tpe, random, finish (the
    point of a briefly trained trial, in full) or repeat."""
    context: dict[str, Any] = field(default_factory=dict)
    """What the trial depends on besides the records and the study's identity; empty for a repeat."""
    seq: int = 0
    """Number of the latest write to the trial; the writes of a study are counted."""
    asked_seq: int = 0
    """Number of the write that added the trial."""
    ended_seq: int | None = None
    """Number of the write that ended the trial; None while it runs."""
    epoch_events: tuple[EpochEvent, ...] = ()
    """One for each of `epochs`."""

    @property
    def given_seed(self) -> int | None:
        """Seed of a repeat, or 0 for a trial of a search with common seeds; None if the seed is the trial's number."""
        return 0 if self.context.get("trial_seeds") == "common" else self.repeat

    @property
    def seed(self) -> int:
        """Offset added to `train.seed`."""
        return seed_of(self.number, self.given_seed)

    @property
    def schedule(self) -> int | None:
        """Number of epochs of a trial that is trained with a complete but shorter schedule; None for full length."""
        return self.context.get("schedule")

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch that the trial is trained for: that of its schedule."""
        return self.schedule or self.length

    @property
    def is_open(self) -> bool:
        """Whether the trial has not ended."""
        return self.state is State.RUNNING

    @property
    def chosen(self) -> EpochResult | None:
        """Result of the selected epoch of a COMPLETE trial; None for other trials."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.selected), None)

    def outcome(self) -> dict[str, float]:
        """Return best and selected epoch by the names of their MLflow metrics; empty for an open trial.

        They are `best/val/miou` and `best/epoch` of an ended trial with an epoch, and `selected/val/...` of a COMPLETE
        one.
        """
        if self.is_open or not self.epochs:
            return {}
        best = select_epoch(self.epochs, "best")
        selected = self.chosen.validation_metrics() if self.chosen else {}
        found = {"best/val/miou": best.miou, "best/epoch": best.epoch}
        return found | {f"selected/{name}": value for name, value in selected.items()}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that MLflow's table shows, finite ones only: last epoch, test result and outcome."""
        last = self.epochs[-1].metrics() if self.epochs else {}
        found = last | (self.test.metrics() if self.test else {}) | self.outcome()
        return {name: value for name, value in found.items() if math.isfinite(value)}


def seed_of(number: int, given_seed: int | None) -> int:
    """Return the offset added to `train.seed`: the given seed, else the trial's number."""
    return number if given_seed is None else given_seed


def keeps(record: TrialRecord, floors: Mapping[str, float]) -> bool:
    """Return whether a COMPLETE trial has at least the IoU of every floor, by class key, in its selected epoch."""
    iou = record.chosen.iou if record.chosen is not None else {}
    return all(iou.get(key, math.nan) >= floor for key, floor in floors.items())


def rank_trials(
    records: Iterable[TrialRecord], changed_batch: bool, floors: Mapping[str, float] = MappingProxyType({})
) -> list[TrialRecord]:
    """Return the COMPLETE trials by falling value; of equal values the lower number comes first.

    Trials that keep all floors come before those that do not.

    Args:
        records: trials of one study, in any order.
        changed_batch: whether to include trials whose settings had to be changed because memory ran out.
        floors: smallest IoU by class key, see `Constraint`; by default there are none.
    """
    complete = [r for r in records if r.value is not None and (changed_batch or not r.overrides)]
    return sorted(complete, key=lambda record: (not keeps(record, floors), -(record.value or 0.0), record.number))


def best_trial(
    records: Iterable[TrialRecord], changed_batch: bool, floors: Mapping[str, float] = MappingProxyType({})
) -> TrialRecord | None:
    """Return the first trial of `rank_trials`; None if no trial is COMPLETE."""
    return next(iter(rank_trials(records, changed_batch, floors)), None)


def kept_trials(
    records: Sequence[TrialRecord], best: TrialRecord | None, num_to_keep: int, floors: Mapping[str, float]
) -> set[int]:
    """Return the numbers of the COMPLETE trials that keep the weights of their selected epoch.

    They are the start point, the best trial, and the best ones of every ranking that a later run may choose: with and
    without trials whose batch was changed, and with and without the floors.  A trial that is not among them never comes
    back, since trials that end can only displace others.

    Args:
        records: all trials of a study.
        best: its best trial.
        num_to_keep: number of trials of each ranking.
        floors: smallest IoU by class key, see `Constraint`.
    """
    rankings = [rank_trials(records, changed, chosen) for changed, chosen in product((True, False), (floors, {}))]
    kept = {START_POINT} | {record.number for ranking in rankings for record in ranking[:num_to_keep]}
    kept |= {best.number} if best is not None else set()
    return {record.number for record in records if record.number in kept and record.state is State.COMPLETE}


def pareto_front(ranked: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Return the trials that no other one dominates: at least equal in both metrics, and better in one.

    Args:
        ranked: COMPLETE trials in any order.
        objectives: the two metrics, the first of which is the value.

    Returns:
        The front by falling first and rising second metric; of equal trials the first.
    """
    values = {r.number: [value_of(r.chosen, name) for name in objectives] for r in ranked if r.chosen is not None}
    front: list[TrialRecord] = []
    for record in sorted(ranked, key=lambda r: [-value for value in values[r.number]]):
        if not front or values[record.number][1] > values[front[-1].number][1]:
            front.append(record)
    return front


def count_ended(records: Iterable[TrialRecord]) -> int:
    """Return the number of trials that have ended."""
    return sum(not record.is_open for record in records)


def read_record(trial: "RowMapping", epochs: "Sequence[RowMapping]", failures: int) -> TrialRecord:
    """Convert rows of the database to a record.

    Args:
        trial: row of `TRIALS`.
        epochs: rows of `EPOCHS`, ascending by epoch.
        failures: number of rows of `FAILURES`.
    """
    same = ("number", "params", "attempt", "value", "reason", "started", "ended", "overrides", "length", "selected")
    return TrialRecord(
        **{name: trial[name] for name in (*same, "origin", "context", "seq", "asked_seq", "ended_seq")},
        state=State(trial["state"]),
        failures=failures,
        epochs=[EpochResult.from_json(row["result"]) for row in epochs],
        epoch_events=tuple(EpochEvent(row["seq"], row["attempt"], row["stop"], row["stop_seq"]) for row in epochs),
        repeat=trial["repeat_seed"],
        test=None if trial["test"] is None else TestResult.from_json(trial["test"]),
    )
