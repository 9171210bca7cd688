"""Searches that first train many points briefly and then the best of them in full: first-epochs and short-full.

A trial that was trained briefly ends as PRUNED.  A point that is finished is a new trial with the same settings: what a
trial was trained with never changes afterwards, and the epochs of every trial stay comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from search.ledger.records import State, TrialRecord
from search.study.objective import value_of

FINISH = "finish"
"""Origin of a trial that trains the point of a briefly trained one in full."""


@dataclass(frozen=True)
class Screening:
    """The two phases of a search.

    Args:
        epochs: after which the trials of the first phase end.
        share: of the trials after trial 0 that are of the second phase, in (0, 1).
        shortens_schedule: whether the learning rate of the first phase decays to zero within these epochs, as in a
            complete training, instead of over the full length.
    """

    epochs: int
    share: float
    shortens_schedule: bool

    @property
    def schedule(self) -> int | None:
        """Length of the schedule in the first phase; None is the full length."""
        return self.epochs if self.shortens_schedule else None

    def finished(self, budget: int) -> int:
        """Return the number of trials of the second phase."""
        return max(1, int((budget - 1) * self.share))

    def is_first_phase(self, records: Sequence[TrialRecord], budget: int) -> bool:
        """Return whether the next trial is of the first phase; trial 0 belongs to neither."""
        return len(first_phase(records)) < budget - 1 - self.finished(budget)

    def next_to_finish(self, records: Sequence[TrialRecord], objective: str) -> TrialRecord | None:
        """Return the best trial of the first phase, by a metric, that has not been finished; None if there is none."""
        finished = [record.params for record in records if record.origin == FINISH]
        left = [r for r in first_phase(records) if r.state is State.PRUNED and r.params not in finished]
        return max(left, key=lambda record: (value_of(record.epochs[-1], objective), -record.number), default=None)


SCREENINGS = {"first-epochs": (0.125, False), "short-full": (0.25, True)}
"""Share of the second phase, and whether the schedule is shortened, by name of the pruner.  first-epochs finishes at
most one in seven points (Egele et al., arXiv 2404.04111, finish few), short-full one in three; both at least one."""


def build_screening(name: str, epochs: int) -> Screening | None:
    """Return the phases of a pruner, whose first one trains a quarter of the epochs; None for the other pruners."""
    if name not in SCREENINGS:
        return None
    share, shortens_schedule = SCREENINGS[name]
    return Screening(max(1, epochs // 4), share, shortens_schedule)


def first_phase(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials of the first phase: all but the start point and those that finish a point."""
    return [record for record in records if record.origin not in ("start", FINISH)]


class FixedEpochsPruner(BasePruner):
    """Stop every trial after a number of epochs, except those that finish a point.

    Args:
        epochs: at least 1.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial has trained its epochs."""
        return trial.user_attrs.get("origin") != FINISH and (trial.last_step or 0) >= self._epochs
