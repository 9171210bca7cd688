"""Build Optuna's samplers and pruners by the names in SearchConfig, and call them for one trial."""

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
"""Number of the trial at the space's start point; it is never pruned, since all others are compared with it."""
ASHA_REDUCTION = 3
"""Reduction factor of successive halving: at each rung about one trial in ASHA_REDUCTION continues."""
SAME_POINT = 0.01
"""Fraction of a setting's range below which two values count as the same."""
GP_TRIALS = {"auto": 250, "gp": 1000}
"""Number of COMPLETE trials from which TPE replaces the Gaussian process, by name of the sampler: the time that the
process needs for a suggestion grows with the cube of this number.  Measured with 7 settings and 63 open trials."""


def build_sampler(
    name: str, *, space: Mapping[str, BaseDistribution], trials: int, seed: int, known: int
) -> BaseSampler:
    """Build a sampler by name.

    Args:
        name: `auto` or `gp` (the Gaussian process, then TPE from GP_TRIALS on), `tpe` or `random`.
        space: searched settings by dotted name.
        trials: budget of the study; with a small budget fewer trials are sampled before the model is used.
        seed: of the study.
        known: number of trials in the study.  It is mixed into the seeds of random generators, which would otherwise
            repeat their points after a restart.  The Sobol sequence continues by itself.
    """
    fresh = random.Random(f"{seed}/{known}").getrandbits(31)
    if name == "random":
        return RandomSampler(seed=fresh)
    tpe = TPESampler(n_startup_trials=min(10, trials // 2), seed=fresh)
    if name == "tpe":
        return tpe
    return SwitchingSampler(SobolThenGPSampler(space, min(4, trials // 2), seed, fresh), tpe, GP_TRIALS[name])


def build_pruner(name: str, trials: int, epochs: int) -> BasePruner:
    """Build a pruner by name.

    No trial is pruned before a quarter of its epochs, since early epochs mislead between losses.

    Args:
        name: `none`, `median`, or `asha`, whose first rung is a quarter of the epochs and whose later rungs are each
            ASHA_REDUCTION times the previous one (15 epochs: 3 and 9; 5 epochs: 1 and 3).
        trials: budget of the study.
        epochs: full length of a trial.
    """
    quarter = max(1, epochs // 4)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=quarter, reduction_factor=ASHA_REDUCTION)
    if name == "median":
        return MedianPruner(n_startup_trials=min(4, trials // 2), n_warmup_steps=quarter)
    return NopPruner()


class SwitchingSampler(BaseSampler):
    """Use one sampler while fewer than `limit` trials of the study are COMPLETE, another one from then on.

    The choice is made for every trial from the study alone, so that a restart does not change it.  Not thread-safe.

    Args:
        first: sampler below the limit.
        then: sampler from the limit on.
        limit: number of COMPLETE trials.
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
    """Sample scrambled Sobol points until enough trials are COMPLETE, then use the Gaussian process.

    Work-around for Optuna 5.0: GPSampler samples its first trials at random, even with a QMCSampler as its independent
    sampler, since QMCSampler samples single values at random.  The position in the Sobol sequence is stored in the
    study, so that no point is repeated after a restart.

    Args:
        space: searched settings by dotted name.
        start: number of COMPLETE trials from which the Gaussian process is used.
        seed: of the Sobol sequence; must be the same in every run of a study.
        fresh_seed: of the Gaussian process.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], start: int, seed: int, fresh_seed: int) -> None:
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
        all_shared = super().infer_relative_search_space(study, trial)
        # Settings searched in an earlier run may be fixed now.
        shared = {name: distribution for name, distribution in all_shared.items() if name in self._space}
        point = super().sample_relative(study, trial, shared)
        # GPSampler (Optuna 5.0) ignores failed trials, so it would suggest a point that fails again and again.
        if not point or self._has_failed(study, point):
            return self._sequence.sample_relative(study, trial, search_space)
        return point

    def _has_failed(self, study: Study, point: dict[str, Any]) -> bool:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(
            all(is_same_point(value, t.params.get(name, math.nan), self._space[name]) for name, value in point.items())
            for t in failed
        )


def is_same_point(one: float, other: float, distribution: FloatDistribution | IntDistribution) -> bool:
    """Return whether two values of a setting differ by less than SAME_POINT of its range; False for NaN."""
    scale = math.log if distribution.log else float
    return abs(scale(one) - scale(other)) < SAME_POINT * (scale(distribution.high) - scale(distribution.low))


class BufferedStorage:
    """A storage for a sampler or pruner: reads from the study's storage, and collects writes in `update`.

    Collected writes are stored later in one transaction with other values of the trial.
    """

    def __init__(self, storage: LockedStorage) -> None:
        self.storage = storage
        self.update = TrialUpdate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        self.update.params[name] = value, distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.update.system_attrs[key] = value


def buffered_study(study: Study) -> tuple[Study, TrialUpdate]:
    """Return a copy of a study with a BufferedStorage, and the update that collects its writes."""
    buffered, storage = copy.copy(study), BufferedStorage(cast(LockedStorage, study._storage))
    buffered._storage = cast(BaseStorage, storage)
    return buffered, storage.update


def suggest_params(study: Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> TrialUpdate:
    """Return the params that a trial lacks and the sampler's system attributes, without writing them."""
    buffered, update = buffered_study(study)
    buffered_trial = Trial(buffered, trial._trial_id)
    for name, distribution in space.items():
        buffered_trial._suggest(name, distribution)
    return update


def should_prune(study: Study, trial: FrozenTrial, epoch: int) -> bool:
    """Return whether the study's pruner stops a trial after its latest epoch, and record the decision.

    A recorded decision is returned again: Optuna's SuccessiveHalvingPruner (5.0) counts rungs in system attributes of
    the trial, so that a second call for the same epoch would count as the next rung.  The decision and these
    attributes are written in one transaction.
    """
    key = f"stop/{epoch}"
    if key in trial.user_attrs:
        return bool(trial.user_attrs[key])
    buffered, update = buffered_study(study)
    stop = bool(study.pruner.prune(buffered, trial)) and trial.number != START_POINT
    update.user_attrs[key] = stop
    cast(LockedStorage, study._storage).write(trial._trial_id, update)
    return stop
