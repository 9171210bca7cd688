"""What the ledger hands out about a trial, and how it is read from Optuna's stored form."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from optuna.trial import FrozenTrial

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult
from search.ledger.storage import TrialUpdate


class Kind(StrEnum):
    """What a trial is for: part of a search, or a fixed point trained again with another seed (search.compare)."""

    SEARCH = "search"
    REPEAT = "repeat"


class State(StrEnum):
    """How a trial stands: one stopped early is PRUNED, a broken one FAIL, and neither is ever COMPLETE."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"


@dataclass(frozen=True)
class TrialAttempt:
    """One start of one trial, handed to a worker."""

    number: int
    attempt: int
    """1 at the trial's first start; only the latest attempt may write."""
    params: dict[str, float | int]
    """Searched settings by dotted name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that an earlier start had to change."""
    repeat: int | None = None
    """The seed of a repeat; None in a search."""

    @property
    def seed(self) -> int:
        """What is added to `train.seed`."""
        return seed_of(self.number, self.repeat)


@dataclass(frozen=True)
class TrialRecord:
    """All that the ledger knows about one trial."""

    number: int
    state: State
    params: dict[str, float | int]
    """Searched settings by dotted name; some are missing if the driver died while asking."""
    attempt: int
    """The latest start; 0 if the driver died while asking."""
    failures: int
    """Attempts whose process died."""
    epochs: list[EpochResult]
    """In order, from epoch 1."""
    value: float | None
    """`val/miou` of the selected epoch of a COMPLETE trial."""
    reason: str | None
    """Why it is FAIL or PRUNED."""
    started: float
    """Unix seconds."""
    ended: float | None
    """Unix seconds; None while it runs."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings that had to be changed under way since memory ran out; such a trial is not compared with others."""
    repeat: int | None = None
    """The seed of a repeat; None in a search."""
    length: int = 0
    """Epochs that its latest start was to reach; 0 before the first."""
    selected: int | None = None
    """The epoch that stands for a COMPLETE trial."""
    test: TestResult | None = None
    """What the test split said of a repeat; None in a search, which never sees that split."""

    @property
    def kind(self) -> Kind:
        """Whether the trial is part of a search or a repeat."""
        return Kind.SEARCH if self.repeat is None else Kind.REPEAT

    @property
    def seed(self) -> int:
        """What is added to `train.seed`."""
        return seed_of(self.number, self.repeat)

    @property
    def chosen(self) -> EpochResult | None:
        """What the selected epoch of a COMPLETE trial gave."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.selected), None)


def seed_of(number: int, repeat: int | None) -> int:
    """What a trial adds to `train.seed`: its number in a search, so that no two trials share their luck."""
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
    """The record of a trial that has been asked; KeyError for one that still waits."""
    state = State[trial.state.name]
    return TrialRecord(
        number=trial.number,
        state=state,
        params=dict(trial.params),
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
    """The trial's latest start, 0 before the first."""
    return int(trial.user_attrs.get("attempt", 0))


def read_overrides(trial: FrozenTrial) -> dict[str, Any]:
    """Settings changed under way, by dotted name."""
    return dict(trial.user_attrs.get("overrides", {}))


def read_repeat(trial: FrozenTrial) -> int | None:
    """The seed of a repeat, None of a trial of a search."""
    return trial.user_attrs.get("repeat")


def read_test(trial: FrozenTrial) -> TestResult | None:
    """What the test split said of a repeat, None as long as it has not been asked."""
    stored = trial.user_attrs.get("test")
    return None if stored is None else TestResult.from_json(stored)


def read_deaths(trial: FrozenTrial) -> dict[str, str]:
    """Why the process of an attempt died, by attempt."""
    return dict(trial.user_attrs.get("failures", {}))


def read_epochs(trial: FrozenTrial) -> list[EpochResult]:
    """The recorded epochs in order."""
    stored = [value for key, value in trial.user_attrs.items() if key.startswith("epoch/")]
    return sorted(map(EpochResult.from_json, stored), key=lambda epoch: epoch.epoch)


def merge_epochs(trial: FrozenTrial, epochs: Sequence[EpochResult]) -> tuple[list[EpochResult], TrialUpdate]:
    """A trial's epochs with those of a history, and what the ledger lacks of them; a recorded one stays as it is.

    Finite mIoUs become intermediate values, for pruners and dashboards.

    Args:
        trial: as it was just read.
        epochs: from 1 on.
    """
    known = {epoch.epoch: epoch for epoch in read_epochs(trial)}
    merged = {epoch.epoch: epoch for epoch in epochs} | known
    facts = {f"epoch/{k}": e.to_json() for k, e in merged.items() if k not in known}
    values = {k: e.miou for k, e in merged.items() if k not in trial.intermediate_values and math.isfinite(e.miou)}
    return list(merged.values()), TrialUpdate(user_attrs=facts, values=values)
