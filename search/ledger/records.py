"""Records of trials as the ledger returns them, and their conversion from Optuna's trials."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from optuna.trial import FrozenTrial

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult
from search.ledger.storage import TrialUpdate

OFF = "off"
"""User attribute of a trial: names of the searched settings that it switches off."""


class Kind(StrEnum):
    """Purpose of a trial: part of a search, or a repeat, i.e. a fixed point trained again with another seed."""

    SEARCH = "search"
    REPEAT = "repeat"


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
    repeat: int | None = None
    """The seed of a repeat; None in a search."""

    @property
    def seed(self) -> int:
        """Offset added to `train.seed`."""
        return seed_of(self.number, self.repeat)


@dataclass(frozen=True)
class TrialRecord:
    """One trial as stored in the ledger."""

    number: int
    state: State
    params: dict[str, float | int]
    """Searched settings by dotted name; incomplete if the driver died while it created the trial."""
    attempt: int
    """Number of the latest start; 0 if the driver died while it created the trial."""
    failures: int
    """Number of attempts whose process died."""
    epochs: list[EpochResult]
    """Ascending, from epoch 1."""
    value: float | None
    """`val/miou` of the selected epoch of a COMPLETE trial."""
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
    """Target number of epochs of the latest attempt; 0 before the first."""
    selected: int | None = None
    """The epoch of a COMPLETE trial that `train.select` selects."""
    test: TestResult | None = None
    """Result of a repeat on the test split; None in a search, which never uses that split."""

    @property
    def kind(self) -> Kind:
        """Purpose of the trial."""
        return Kind.SEARCH if self.repeat is None else Kind.REPEAT

    @property
    def seed(self) -> int:
        """Offset added to `train.seed`."""
        return seed_of(self.number, self.repeat)

    @property
    def chosen(self) -> EpochResult | None:
        """Result of the selected epoch of a COMPLETE trial; None for other trials."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.selected), None)


def seed_of(number: int, repeat: int | None) -> int:
    """Return the offset added to `train.seed`: the seed of a repeat, else the trial's number."""
    return number if repeat is None else repeat


def rank_trials(records: Iterable[TrialRecord], changed_batch: bool) -> list[TrialRecord]:
    """Return the COMPLETE trials by falling value; of equal values the lower number comes first.

    Args:
        records: trials of one study, in any order.
        changed_batch: whether to include trials whose settings had to be changed because memory ran out.
    """
    complete = [r for r in records if r.value is not None and (changed_batch or not r.overrides)]
    return sorted(complete, key=lambda record: (-(record.value or 0.0), record.number))


def best_trial(records: Iterable[TrialRecord], changed_batch: bool) -> TrialRecord | None:
    """Return the first trial of `rank_trials`; None if no trial is COMPLETE."""
    return next(iter(rank_trials(records, changed_batch)), None)


def read_record(trial: FrozenTrial) -> TrialRecord:
    """Convert a trial of Optuna to a record; raises KeyError for a trial in state WAITING."""
    state = State[trial.state.name]
    return TrialRecord(
        number=trial.number,
        state=state,
        params=read_params(trial),
        attempt=read_attempt(trial),
        failures=len(read_deaths(trial)),
        epochs=read_epochs(trial),
        value=trial.value if state is State.COMPLETE else None,
        reason=trial.user_attrs.get("reason") if state in (State.FAIL, State.PRUNED) else None,
        started=trial.datetime_start.timestamp() if trial.datetime_start else 0.0,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
        overrides=read_overrides(trial),
        repeat=read_repeat(trial),
        length=int(trial.user_attrs.get("length", 0)),
        selected=trial.user_attrs.get("selected") if state is State.COMPLETE else None,
        test=read_test(trial),
    )


def read_attempt(trial: FrozenTrial) -> int:
    """Return the number of the trial's latest attempt, 0 before the first."""
    return int(trial.user_attrs.get("attempt", 0))


def read_params(trial: FrozenTrial) -> dict[str, float | int]:
    """Return the searched settings by dotted name; those that the trial switches off are 0 (see `Range.off_below`).

    Optuna's trial has the suggested value, which lies in the range.
    """
    off = trial.user_attrs.get(OFF, ())
    return {name: type(value)(0) if name in off else value for name, value in trial.params.items()}


def read_overrides(trial: FrozenTrial) -> dict[str, Any]:
    """Return the settings changed after the trial ran out of memory, by dotted name."""
    return dict(trial.user_attrs.get("overrides", {}))


def read_repeat(trial: FrozenTrial) -> int | None:
    """Return the seed of a repeat, or None for a trial of a search."""
    return trial.user_attrs.get("repeat")


def read_test(trial: FrozenTrial) -> TestResult | None:
    """Return the result of a repeat on the test split, or None before it was evaluated."""
    stored = trial.user_attrs.get("test")
    return None if stored is None else TestResult.from_json(stored)


def read_deaths(trial: FrozenTrial) -> dict[str, str]:
    """Return the reason for which an attempt's process died, by attempt."""
    return dict(trial.user_attrs.get("failures", {}))


def read_epochs(trial: FrozenTrial) -> list[EpochResult]:
    """Return the recorded epochs in ascending order."""
    stored = [value for key, value in trial.user_attrs.items() if key.startswith("epoch/")]
    return sorted(map(EpochResult.from_json, stored), key=lambda epoch: epoch.epoch)


def merge_epochs(trial: FrozenTrial, epochs: Sequence[EpochResult]) -> tuple[list[EpochResult], TrialUpdate]:
    """Merge epochs into those recorded of a trial; a recorded epoch is not replaced.

    Args:
        trial: the trial as just read.
        epochs: a history, from epoch 1.

    Returns:
        All epochs, and the update that records the new ones.  It stores finite mIoUs as intermediate values, which
        pruners and optuna-dashboard read.
    """
    known = {epoch.epoch: epoch for epoch in read_epochs(trial)}
    merged = {epoch.epoch: epoch for epoch in epochs} | known
    new = {f"epoch/{k}": e.to_json() for k, e in merged.items() if k not in known}
    values = {k: e.miou for k, e in merged.items() if k not in trial.intermediate_values and math.isfinite(e.miou)}
    return list(merged.values()), TrialUpdate(user_attrs=new, values=values)
