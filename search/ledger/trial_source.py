"""Where the points of a study come from: a sampler's proposals, or a fixed list of repeats."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.ledger.records import read_repeat
from search.ledger.sampling import suggest_params
from search.ledger.storage import TrialUpdate
from search.study.plan import Repeat


class TrialSource(Protocol):
    """Begins the trials of a study; all that it knows is in the study, so that any driver can go on."""

    def remaining(self, study: Study) -> int:
        """How many trials are still to be begun."""

    def start_next(self, study: Study) -> int | None:
        """Begin the next trial; returns its number, or None where none is left."""

    def suggest_params(self, study: Study, trial: FrozenTrial) -> TrialUpdate:
        """The values that a trial lacks: all of a new one's, or of one whose driver died while asking."""


@dataclass(frozen=True)
class SampledTrials:
    """As many points as the budget allows, proposed by the study's sampler."""

    space: Mapping[str, BaseDistribution]
    trials: int

    def remaining(self, study: Study) -> int:
        """See Points."""
        begun = sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))
        return max(0, self.trials - begun)

    def start_next(self, study: Study) -> int | None:
        """See Points; `Study.ask` within a budget."""
        trials, storage = study.get_trials(deepcopy=False), study._storage
        waiting = [t for t in trials if t.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self.trials:
            return None
        if waiting:
            storage.set_trial_state_values(waiting[0]._trial_id, state=TrialState.RUNNING)
            return waiting[0].number
        return storage.get_trial(storage.create_new_trial(study._study_id)).number

    def suggest_params(self, study: Study, trial: FrozenTrial) -> TrialUpdate:
        """See Points."""
        return suggest_params(study, trial, self.space) if self.space.keys() - trial.params.keys() else TrialUpdate()


@dataclass(frozen=True)
class FixedTrials:
    """A fixed list of repeats.  One that the study holds already, however it ended, is not begun again."""

    repeats: Sequence[Repeat]

    def remaining(self, study: Study) -> int:
        """See Points."""
        return sum(1 for _ in self.missing(study))

    def missing(self, study: Study) -> Iterator[Repeat]:
        """The repeats that the study lacks, in order."""
        trials = study.get_trials(deepcopy=False)
        held = [Repeat(t.params, seed) for t in trials if (seed := read_repeat(t)) is not None]
        return (repeat for repeat in self.repeats if repeat not in held)

    def start_next(self, study: Study) -> int | None:
        """See Points; the trial appears whole or not at all, so that nothing has to be completed."""
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
        """See Points."""
        return TrialUpdate()


@dataclass(frozen=True)
class TrialSettings:
    """What `Ledger.start` or `Ledger.start_repeats` was told."""

    source: TrialSource
    epochs: int
    select: str
    prunes: bool


def single_value(value: float | int) -> BaseDistribution:
    """A distribution that holds one value."""
    return IntDistribution(value, value) if isinstance(value, int) else FloatDistribution(value, value)
