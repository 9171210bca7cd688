"""How points are proposed and weak trials stopped: Optuna's samplers and pruners under the names of our settings."""

import copy
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any, cast

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from search.ledger.storage import LockedStorage, TrialUpdate

START_POINT = 0
"""Number of the trial at the source's own point; it is never pruned, since every other one is compared with it."""
ASHA_REDUCTION = 3
"""At each rung of successive halving about one trial in this many goes on."""
SAME_POINT = 0.01
"""Two values count as the same if they lie closer than this part of their range."""
GP_TRIALS = {"auto": 250, "gp": 1000}
"""Finished trials from which TPE goes on, since what the Gaussian process takes to propose a point grows with their
cube: measured with 7 settings and 63 open trials."""


def build_sampler(
    name: str, *, space: Mapping[str, BaseDistribution], trials: int, seed: int, known: int
) -> BaseSampler:
    """A sampler by name.

    Args:
        name: auto or gp (the Gaussian process, then TPE: see GP_TRIALS), tpe or random.
        space: what is searched, by dotted name.
        trials: budget of the study; small ones start with fewer points that no model proposes.
        seed: of the study.
        known: trials that the study has already.  It enters the seed of everything random, since a fixed one would
            propose the same points after every restart; the quasi-random sequence goes on by itself.
    """
    fresh = random.Random(f"{seed}/{known}").getrandbits(31)
    if name == "random":
        return RandomSampler(seed=fresh)
    tpe = TPESampler(n_startup_trials=min(10, trials // 2), seed=fresh)
    if name == "tpe":
        return tpe
    return SwitchingSampler(SobolThenGPSampler(space, min(4, trials // 2), seed, fresh), tpe, GP_TRIALS[name])


def build_pruner(name: str, trials: int, epochs: int) -> BasePruner:
    """A pruner by name: none, asha or median.

    Neither judges a trial before a quarter of its epochs, since early epochs mislead between losses.  Rungs of asha are
    that quarter, then three times the one before (15 epochs: 3 and 9; 5 epochs: 1 and 3).
    """
    quarter = max(1, epochs // 4)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=quarter, reduction_factor=ASHA_REDUCTION)
    if name == "median":
        return MedianPruner(n_startup_trials=min(4, trials // 2), n_warmup_steps=quarter)
    return NopPruner()


class SwitchingSampler(BaseSampler):
    """One sampler while fewer than `limit` trials of a study are COMPLETE, another one from then on.

    The study alone decides, anew for every trial: a restart changes nothing.
    """

    def __init__(self, first: BaseSampler, then: BaseSampler, limit: int) -> None:
        self._first, self._then, self._limit = first, then, limit
        self._active = first

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        self._active = self._first if complete < self._limit else self._then
        self._active.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._active.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._active.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._active.sample_independent(study, trial, param_name, param_distribution)


class SobolThenGPSampler(GPSampler):
    """Scrambled Sobol points until enough trials are complete, then the Gaussian process.

    Optuna's own start is random, also with a QMCSampler as its independent sampler, which draws at random when asked
    for single values.  The position in the sequence is kept in the study: no point comes twice, restart or not.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], start: int, seed: int, fresh_seed: int) -> None:
        """`seed` is the sequence's, the same at every start; `fresh_seed` the Gaussian process's."""
        super().__init__(
            seed=fresh_seed, n_startup_trials=start, deterministic_objective=False, warn_independent_sampling=False
        )
        self._space: dict[str, BaseDistribution] = dict(sorted(space.items()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._sequence = QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        found = super().infer_relative_search_space(study, trial)
        shared = {name: drawn for name, drawn in found.items() if name in self._space}  # some may be fixed by now
        point = super().sample_relative(study, trial, shared)
        # The process never hears of failed trials: it would propose a point that breaks again and again.
        if not point or self._has_failed(study, point):
            return self._sequence.sample_relative(study, trial, search_space)
        return point

    def _has_failed(self, study: Study, point: dict[str, Any]) -> bool:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(
            all(is_same_point(value, t.params.get(name, math.nan), self._space[name]) for name, value in point.items())
            for t in failed
        )


def is_same_point(one: float, other: float, drawn: FloatDistribution | IntDistribution) -> bool:
    """Whether two values of a setting are so close that a trial at one tells about the other; NaN is like none."""
    scale = math.log if drawn.log else float
    return abs(scale(one) - scale(other)) < SAME_POINT * (scale(drawn.high) - scale(drawn.low))


class BufferedStorage:
    """Stands in for a study's storage while a sampler or pruner thinks: reads pass through, what it writes is noted."""

    def __init__(self, storage: LockedStorage) -> None:
        self.storage = storage
        self.entry = TrialUpdate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        self.entry.params[name] = value, distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.entry.system_attrs[key] = value


def buffered_study(study: Study) -> tuple[Study, TrialUpdate]:
    """A study on which a sampler or pruner changes nothing, and the entry that gathers what it would have written."""
    noted, notebook = copy.copy(study), BufferedStorage(cast(LockedStorage, study._storage))
    noted._storage = cast(BaseStorage, notebook)
    return noted, notebook.entry


def suggest_params(study: Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> TrialUpdate:
    """What a trial lacks of a point: the sampler's values by dotted name, and its notes."""
    noted, entry = buffered_study(study)
    asked = Trial(noted, trial._trial_id)
    for name, distribution in space.items():
        asked._suggest(name, distribution)
    return entry


def should_prune(study: Study, trial: FrozenTrial, epoch: int) -> bool:
    """Whether the study's pruner stops a trial after its latest epoch, by the decision recorded or a new one.

    Successive halving counts by notes that it writes to the trial: asked twice about an epoch, it would take the first
    time for an earlier rung.  So the decision is recorded together with the notes, and asking again reads it.
    """
    key = f"stop/{epoch}"
    if key in trial.user_attrs:
        return bool(trial.user_attrs[key])
    noted, entry = buffered_study(study)
    stop = bool(study.pruner.prune(noted, trial)) and trial.number != START_POINT
    entry.user_attrs[key] = stop
    cast(LockedStorage, study._storage).write(trial._trial_id, entry)
    return stop
