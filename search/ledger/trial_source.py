"""Sources of a study's trials: what the next trial is, and whether a trial is stopped early."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from search.ledger.records import TrialRecord
from search.study.objective import DEFAULT
from search.study.plan import Repeat


@dataclass(frozen=True)
class NewTrial:
    """A trial that is still to be added to the ledger."""

    params: dict[str, float | int]
    """Searched settings by dotted name."""
    origin: str
    """What chose them, see `TrialRecord.origin`."""
    context: dict[str, Any] = field(default_factory=dict)
    """See `TrialRecord.context`."""
    repeat: int | None = None
    """The seed of a repeat; None in a search."""


class TrialSource(Protocol):
    """Chooses the trials of a study, as a function of the trials that the ledger has.

    The arguments `records` are all trials of the study, by number.  Not thread-safe.
    """

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early."""

    def remaining(self, records: Sequence[TrialRecord]) -> int:
        """Return the number of trials that are still to be added."""

    def next_trial(self, records: Sequence[TrialRecord]) -> NewTrial | None:
        """Return the next trial; None if none remains."""

    def should_prune(self, records: Sequence[TrialRecord], number: int) -> bool:
        """Return whether an open trial is stopped after its latest epoch; a repeated call returns the same."""


@dataclass(frozen=True)
class FixedTrials:
    """Trials of a fixed list of repeats.  A repeat that the study has in any state is not started again."""

    repeats: Sequence[Repeat]
    prunes = False

    def remaining(self, records: Sequence[TrialRecord]) -> int:
        """Count the repeats that the study lacks."""
        return sum(1 for _ in self.missing(records))

    def missing(self, records: Sequence[TrialRecord]) -> Iterator[Repeat]:
        """Return the repeats that the study lacks, in the order of the list."""
        existing = [Repeat(record.params, record.repeat) for record in records if record.repeat is not None]
        return (repeat for repeat in self.repeats if repeat not in existing)

    def next_trial(self, records: Sequence[TrialRecord]) -> NewTrial | None:
        """Return the first repeat that the study lacks."""
        repeat = next(self.missing(records), None)
        return None if repeat is None else NewTrial(dict(repeat.params), "repeat", repeat=repeat.seed)

    def should_prune(self, records: Sequence[TrialRecord], number: int) -> bool:
        """Return False: no repeat is stopped early."""
        return False


@dataclass(frozen=True)
class TrialSettings:
    """Settings of the trials to come, from `Ledger.start`."""

    source: TrialSource
    epochs: int
    """Full length of a trial."""
    select: str
    """`train.select`: which epoch's metrics are the values of a trial."""
    objectives: Sequence[str] = DEFAULT
    """The metrics that are maximised; the first one is the value of a trial."""
