"""Suggest every trial of a study again, and compare with what the ledger has recorded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from search.ledger.records import State, TrialRecord
from search.sampling.samplers import FIRST_PRIOR, Prior
from search.sampling.study_sampler import StudySampler, events_of
from search.sampling.versions import changed_versions

TOLERANCE = 1e-9
"""Relative difference up to which two values of a setting count as equal."""


def replay(records: Sequence[TrialRecord], source: StudySampler) -> Iterator[str]:
    """Yield one line for every trial whose point the source does not suggest again, or cannot.

    Args:
        records: all trials of a search, by number.
        source: of the study's space, start point and seed; the rest of a trial's context is changed.
    """
    for record in records:
        changes = changed_versions(record, source.versions)
        if changes:
            yield f"trial {record.number}: cannot be replayed: {'; '.join(changes)}"
            continue
        source.budget, source.sampler = record.context["budget"], record.context["sampler"]
        source.warm_start = record.context.get("warm_start")
        source.prior = Prior(*record.context.get("prior", FIRST_PRIOR))
        if source.pruner != record.context.get("pruner", "none"):
            source.pruner = record.context.get("pruner", "none")
            source.begin()
        again = source.next_trial(records_before(records, record.asked_seq))
        if again is None or not is_same(again.params, record.params):
            yield f"trial {record.number}: its point is {record.params}, replayed {again.params if again else None}"
            source.begin()


def records_before(records: Sequence[TrialRecord], seq: int) -> list[TrialRecord]:
    """Return the records as they were before a write."""
    return [as_of(record, seq) for record in records if record.asked_seq < seq]


def as_of(record: TrialRecord, seq: int) -> TrialRecord:
    """Return a record as it was before a write, as far as a sampler reads it."""
    events = tuple(
        event if event.stop_seq is None or event.stop_seq < seq else replace(event, stop=None, stop_seq=None)
        for event in record.epoch_events
        if event.seq < seq
    )
    earlier = replace(record, epochs=record.epochs[: len(events)], epoch_events=events)
    if record.ended_seq is None or record.ended_seq >= seq:
        earlier = replace(earlier, state=State.RUNNING, value=None, ended_seq=None)
    return replace(earlier, seq=max(event.seq for event in events_of(earlier)))


def is_same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Return whether two points are equal up to TOLERANCE."""
    return one.keys() == other.keys() and all(math.isclose(one[k], other[k], rel_tol=TOLERANCE) for k in one)
