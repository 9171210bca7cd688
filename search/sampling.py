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
from optuna.trial import FrozenTrial, TrialState

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
    return Succession(QuasiRandomThenGP(space, min(4, trials // 2), seed, fresh), tpe, GP_TRIALS[name])


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


class Succession(BaseSampler):
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


class QuasiRandomThenGP(GPSampler):
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
        shared = super().infer_relative_search_space(study, trial)
        point = super().sample_relative(study, trial, shared)
        # The process never hears of failed trials: it would propose a point that breaks again and again.
        if not point or self._has_failed(study, point):
            return self._sequence.sample_relative(study, trial, search_space)
        return point

    def _has_failed(self, study: Study, point: dict[str, Any]) -> bool:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(
            all(is_same(value, t.params.get(name, math.nan), self._space[name]) for name, value in point.items())
            for t in failed
        )


def is_same(one: float, other: float, drawn: FloatDistribution | IntDistribution) -> bool:
    """Whether two values of a setting are so close that a trial at one tells about the other; NaN is like none."""
    scale = math.log if drawn.log else float
    return abs(scale(one) - scale(other)) < SAME_POINT * (scale(drawn.high) - scale(drawn.low))


class NotebookStorage:
    """Stands in for a study's storage while a pruner decides: reads pass through, what it notes is kept back."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self.notes: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.notes[key] = value


def decide(study: Study, trial: FrozenTrial, epoch: int) -> bool:
    """Whether the study's pruner stops a trial after its latest epoch, by the decision recorded or a new one.

    Successive halving counts by notes that it writes to the trial: asked twice about an epoch, it would take the first
    time for an earlier rung.  So the decision is recorded before the notes, and asking again reads it.
    """
    if f"decision/{epoch}" not in trial.user_attrs:
        asking, notebook = copy.copy(study), NotebookStorage(study._storage)
        asking._storage = cast(BaseStorage, notebook)
        stop = bool(study.pruner.prune(asking, trial)) and trial.number != START_POINT
        decision = {"stop": stop, "notes": notebook.notes}
        study._storage.set_trial_user_attr(trial._trial_id, f"decision/{epoch}", decision)
        trial = study._storage.get_trial(trial._trial_id)
    write_notes(study, trial)
    return bool(trial.user_attrs[f"decision/{epoch}"]["stop"])


def write_notes(study: Study, trial: FrozenTrial) -> None:
    """Give an open trial the pruner's notes that it lacks: a driver may have died between a decision and its notes."""
    for key, decision in trial.user_attrs.items():
        if key.startswith("decision/"):
            for name in decision["notes"].keys() - trial.system_attrs.keys():
                study._storage.set_trial_system_attr(trial._trial_id, name, decision["notes"][name])
