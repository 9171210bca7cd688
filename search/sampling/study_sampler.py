"""Suggest the trials of a search: an Optuna study in memory, which repeats what the ledger has recorded."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState

from search.ledger.records import START_POINT, State, TrialRecord
from search.ledger.trial_source import NewTrial
from search.sampling.frame_test import frame_attribute
from search.sampling.pruners import build_pruner
from search.sampling.sampler_choice import build_sampler
from search.sampling.samplers import PRIOR, AvoidingGPSampler, Prior, SnappingSampler
from search.sampling.screening import FINISH, build_screening, first_phase
from search.sampling.versions import digest, library_versions
from search.study.objective import DEFAULT, value_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


class EventKind(Enum):
    """Kind of an event of a trial that the ledger has recorded."""

    ASKED = auto()
    REPORTED = auto()
    DECIDED = auto()
    ENDED = auto()


class Event(NamedTuple):
    """One event of a trial, as the ledger has recorded it."""

    seq: int
    """Number of the write."""
    what: EventKind
    record: TrialRecord
    epoch: int = 0
    """Of REPORTED and DECIDED."""


class StudySampler:
    """The source of the trials of a search (see `TrialSource`).

    A suggestion is a function of the records: the study in memory is built from nothing but them, in the order of
    their writes, and every suggestion has a sampler of its own, seeded by the study's seed and the trial's number.

    Args:
        space: searched settings by dotted name.
        start_point: settings of trial 0 by dotted name.
        trials: budget of the whole study, including failed trials.
        sampler, pruner: the settings of the same name in SearchConfig; `sampler` resolved.
        epochs: full length of a trial.
        seed: of the study.
        off_below: by dotted name, the suggested value below which a setting is 0; by default there are none.
        warm_start: points of other studies, each with all settings of the space; the trials after trial 0, and further
            centres of the sampler's prior.
        objectives: names of the metrics to maximise, one or two; trials with two are not pruned.
        floors: smallest IoU by class key of a trial that may be the best; by default there are none.
        prior: strength and width of the prior of the sampler `auto`.
        common_seed: whether all trials are trained with the same seed, which does not change the suggestions.

    Attributes:
        budget: number of trials; may be changed between calls.
        sampler: its name; may be changed between calls.
        pruner: its name; may be changed between calls.
        warm_start: as above; may be changed between calls.  None also drops the prior around the start point, which
            studies of earlier versions did not have.
        prior: as above; may be changed between calls.
        versions: what all suggestions of a study depend on besides its records, see versions.py: a digest of the space,
            the seed, the versions of fgsearch and libraries, and objectives and floors unless they are the defaults.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        start_point: Mapping[str, float | int],
        *,
        trials: int,
        sampler: str,
        pruner: str,
        epochs: int,
        seed: int,
        off_below: Mapping[str, float] | None = None,
        warm_start: Sequence[Mapping[str, float | int]] | None = (),
        objectives: Sequence[str] = DEFAULT,
        floors: Mapping[str, float] = MappingProxyType({}),
        prior: Prior = PRIOR,
        common_seed: bool = False,
    ) -> None:
        self._space, self._start_point, self._off_below = dict(space), dict(start_point), dict(off_below or {})
        self.budget, self.sampler, self._seed = trials, sampler, seed
        self.warm_start, self.prior = warm_start, prior
        self.pruner, self._epochs = pruner, epochs
        space_digest = digest(self._space, self._start_point, self._off_below)
        self.versions: dict[str, Any] = {"space": space_digest, "seed": seed, **library_versions()}
        self._objectives = tuple(objectives)
        if self._objectives != DEFAULT:
            self.versions["objective"] = ",".join(objectives)
        self._seeds = {"trial_seeds": "common"} if common_seed else {}
        self._floors = dict(floors)
        if floors:
            self.versions["floors"] = self._floors
        self.begin()

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early."""
        return self.pruner != "none"

    @property
    def context(self) -> dict[str, Any]:
        """Return what a trial depends on besides the records, by name."""
        settings = {
            "sampler": self.sampler,
            "pruner": self.pruner,
            "budget": self.budget,
            **self.versions,
            **self._seeds,
        }
        if self.warm_start is None:
            return settings
        return settings | {"warm_start": [dict(point) for point in self.warm_start], "prior": list(self.prior)}

    def remaining(self, records: Sequence[TrialRecord]) -> int:
        """Count the trials left in the budget."""
        return max(0, self.budget - len(records))

    def next_trial(self, records: Sequence[TrialRecord]) -> NewTrial | None:
        """Suggest the next trial within the budget."""
        if len(records) >= self.budget:
            return None
        self._catch_up(records)
        if len(records) == START_POINT:
            return NewTrial(dict(self._start_point), "start", self.context)
        screening = build_screening(self.pruner, self._epochs)
        if screening is None:
            return self._next_point(records, self.context)
        if not screening.is_first_phase(records, self.budget):
            if any(record.is_open for record in first_phase(records)):
                return None
            if best := screening.next_to_finish(records, self._objectives[0]):
                return NewTrial(dict(best.params), FINISH, self.context)
        shorter = {} if screening.schedule is None else {"schedule": screening.schedule}
        return self._next_point(records, self.context | shorter)

    def _next_point(self, records: Sequence[TrialRecord], context: dict[str, Any]) -> NewTrial:
        """Return a trial at a point of another study or, after them, at a suggested point."""
        warm = self.warm_start or ()
        if len(records) <= len(warm):
            return NewTrial(dict(warm[len(records) - 1]), "warm", context)
        return self._suggest(records, context)

    def _suggest(self, records: Sequence[TrialRecord], context: dict[str, Any]) -> NewTrial:
        """Suggest a point after these trials, which the study in memory repeats already."""
        origin, sampler = build_sampler(
            self.sampler,
            self._space,
            trials=self.budget,
            seed=self._seed,
            number=len(records),
            complete=sum(record.state is State.COMPLETE for record in records),
            sobol_index=sum(record.origin == "sobol" for record in records),
            centres=self._centres(),
            prior=self.prior,
        )
        self._study.sampler = SnappingSampler(sampler, self._off_below) if self._off_below else sampler
        trial = self._study.ask(fixed_distributions=self._space)
        if isinstance(sampler, AvoidingGPSampler) and sampler.used_instead:
            origin = "sobol"
        self._asked.append(trial)
        params = {n: type(v)(0) if v < self._off_below.get(n, -math.inf) else v for n, v in trial.params.items()}
        return NewTrial(params, origin, context)

    def _centres(self) -> list[dict[str, float | int]]:
        """Return the centres of the prior: start point and points of other studies."""
        points = [] if self.warm_start is None else [self._start_point, *self.warm_start]
        return [{name: self._position(name, p[name]) for name in self._space if name in p} for p in points]

    def should_prune(self, records: Sequence[TrialRecord], number: int) -> bool:
        """Return whether the pruner stops an open trial after its latest epoch; never trial 0."""
        self._catch_up(records)
        return self._decide(number, len(records[number].epochs))

    def begin(self) -> None:
        """Forget everything; the next call repeats all events."""
        pruner = build_pruner(self.pruner, self.budget, self._epochs)
        directions = ["maximize"] * len(self._objectives)
        # Hyperband draws the bracket of a trial by the name of the study.
        self._study = optuna.create_study(study_name="search", directions=directions, pruner=pruner)
        self._asked: list[Trial] = []
        self._decisions: dict[tuple[int, int], bool] = {}
        self._seq = 0

    def _catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Repeat what was recorded since the last call."""
        if len(self._asked) > len(records):  # the write of the last suggestion has failed
            self.begin()
        news = [event for record in records if record.seq > self._seq for event in events_of(record)]
        for event in sorted(news, key=lambda event: event.seq):  # a stable sort: events of one write stay in order
            if event.seq > self._seq:
                self._repeat(event)
        self._seq = max((record.seq for record in records), default=0)

    def _repeat(self, event: Event) -> None:
        """Repeat one event in the study in memory."""
        record = event.record
        if event.what is EventKind.ASKED and record.number == len(self._asked):
            self._add(record)
        elif event.what is EventKind.REPORTED:
            self._report(record, event.epoch)
        elif event.what is EventKind.DECIDED:
            self._decide(record.number, event.epoch)
        elif event.what is EventKind.ENDED:
            self._tell(record)

    def _report(self, record: TrialRecord, epoch: int) -> None:
        """Report an epoch: its first objective, and the mIoU of each frame where it was recorded.

        Optuna takes no reports with two objectives, and pruners no value that is not finite.
        """
        result, trial = record.epochs[epoch - 1], self._asked[record.number]
        value = value_of(result, self._objectives[0])
        if len(self._objectives) > 1 or not math.isfinite(value):
            return
        if result.frame_miou:
            trial.set_user_attr(frame_attribute(epoch), result.frame_miou)
        trial.report(value, epoch)

    def _add(self, record: TrialRecord) -> None:
        """Add a trial with its recorded point, of which settings that are fixed by now are left out."""
        known = {name: self._position(name, value) for name, value in record.params.items() if name in self._space}
        self._study.sampler = RandomSampler(seed=0)  # not used: the point is given
        self._study.enqueue_trial(known)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")  # its range was changed
            trial = self._study.ask(fixed_distributions={name: self._space[name] for name in known})
        trial.set_user_attr("origin", record.origin)
        self._asked.append(trial)

    def _position(self, name: str, value: float | int) -> float | int:
        """Return the value that was suggested: the lowest of the range for a setting that is off."""
        distribution = self._space[name]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return distribution.low if value == 0 and name in self._off_below else value

    def _decide(self, number: int, epoch: int) -> bool:
        """Let the pruner decide about a trial after its latest epoch, once: pruners record what they decide."""
        if (number, epoch) not in self._decisions:
            self._decisions[number, epoch] = self._asked[number].should_prune() and number != START_POINT
        return self._decisions[number, epoch]

    def _tell(self, record: TrialRecord) -> None:
        """End a trial as recorded."""
        if record.state is State.COMPLETE:
            assert record.chosen is not None
            for key, floor in self._floors.items():
                lacking = floor - record.chosen.iou.get(key, math.nan)
                self._asked[record.number].set_constraint(key, 1.0 if math.isnan(lacking) else lacking)
            others = [value_of(record.chosen, name) for name in self._objectives[1:]]
            self._study.tell(record.number, [record.value, *others])
        else:
            self._study.tell(record.number, state=TrialState[record.state.name])


def events_of(record: TrialRecord) -> Iterator[Event]:
    """Return everything that the ledger has recorded of a trial, in order."""
    yield Event(record.asked_seq, EventKind.ASKED, record)
    for epoch, event in enumerate(record.epoch_events, start=1):
        yield Event(event.seq, EventKind.REPORTED, record, epoch)
        if event.stop_seq is not None:
            yield Event(event.stop_seq, EventKind.DECIDED, record, epoch)
    if record.ended_seq is not None:
        yield Event(record.ended_seq, EventKind.ENDED, record)
