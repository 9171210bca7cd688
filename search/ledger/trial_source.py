"""Sources of a study's trials: points suggested by a sampler, or a fixed list of repeats."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.ledger.records import OFF, read_repeat
from search.ledger.sampling import suggest_params
from search.ledger.storage import TrialUpdate
from search.study.plan import Repeat


class TrialSource(Protocol):
    """Starts the trials of a study.  Its only state is the study itself, so that a later driver can continue.

    Requires the study's lock.
    """

    def remaining(self, study: Study) -> int:
        """Return the number of trials that are still to be started."""

    def start_next(self, study: Study) -> int | None:
        """Start the next trial and return its number; None if none remains."""

    def suggest_params(self, study: Study, trial: FrozenTrial) -> TrialUpdate:
        """Return the params that a trial lacks, without writing them.

        A new trial lacks all; so does a trial whose driver died before it recorded the params.
        """


@dataclass(frozen=True)
class SampledTrials:
    """Trials with params from the study's sampler, up to a budget.

    Args:
        space: searched settings by dotted name.
        trials: budget of the whole study, including failed trials.
        off_below: by dotted name, the suggested value below which a setting is 0.
    """

    space: Mapping[str, BaseDistribution]
    trials: int
    off_below: Mapping[str, float]

    def remaining(self, study: Study) -> int:
        """Count the trials left in the budget."""
        started = sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))
        return max(0, self.trials - started)

    def start_next(self, study: Study) -> int | None:
        """Start the next trial within the budget; otherwise as `optuna.Study.ask`."""
        trials, storage = study.get_trials(deepcopy=False), study._storage
        waiting = [t for t in trials if t.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self.trials:
            return None
        if waiting:
            storage.set_trial_state_values(waiting[0]._trial_id, state=TrialState.RUNNING)
            return waiting[0].number
        return storage.get_trial(storage.create_new_trial(study._study_id)).number

    def suggest_params(self, study: Study, trial: FrozenTrial) -> TrialUpdate:
        """Suggest the params that a trial lacks, and record which of them switch their setting off."""
        if not self.space.keys() - trial.params.keys():
            return TrialUpdate()
        update = suggest_params(study, trial, self.space)
        point = trial.params | {n: kind.to_external_repr(value) for n, (value, kind) in update.params.items()}
        if off := [name for name, bound in self.off_below.items() if point[name] < bound]:
            update.user_attrs[OFF] = off
        return update


@dataclass(frozen=True)
class FixedTrials:
    """Trials of a fixed list of repeats.  A repeat that the study contains in any state is not started again."""

    repeats: Sequence[Repeat]

    def remaining(self, study: Study) -> int:
        """Count the repeats that the study lacks."""
        return sum(1 for _ in self.missing(study))

    def missing(self, study: Study) -> Iterator[Repeat]:
        """Return the repeats that the study lacks, in the order of the list."""
        trials = study.get_trials(deepcopy=False)
        existing = [Repeat(t.params, seed) for t in trials if (seed := read_repeat(t)) is not None]
        return (repeat for repeat in self.repeats if repeat not in existing)

    def start_next(self, study: Study) -> int | None:
        """Create the next repeat with its params in one step, so that `suggest_params` adds none."""
        repeat = next(self.missing(study), None)
        if repeat is None:
            return None
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(repeat.params),
            distributions={name: single_value(value) for name, value in repeat.params.items()},
            user_attrs={"repeat": repeat.seed},
        )
        storage = study._storage
        return storage.get_trial(storage.create_new_trial(study._study_id, template_trial=template)).number

    def suggest_params(self, study: Study, trial: FrozenTrial) -> TrialUpdate:
        """Return an empty update: a repeat is created with its params."""
        return TrialUpdate()


@dataclass(frozen=True)
class TrialSettings:
    """Settings of the trials to come, from `Ledger.start` or `Ledger.start_repeats`."""

    source: TrialSource
    epochs: int
    """Full length of a trial."""
    select: str
    """`train.select`: which epoch's mIoU is the value of a trial."""
    prunes: bool
    """Whether trials may be stopped early."""


def single_value(value: float | int) -> BaseDistribution:
    """Return an Optuna distribution with one possible value."""
    return IntDistribution(value, value) if isinstance(value, int) else FloatDistribution(value, value)
