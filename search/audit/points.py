"""Check that every point of a search is the one that the sampler suggests after the trials before it."""

from collections.abc import Iterator

from search.ledger.catalog import open_ledger
from search.ledger.records import Kind
from search.study.location import StudyLocation


def audit_points(location: StudyLocation) -> Iterator[str]:
    """Yield one line for every trial whose point cannot be repeated; none for a study of repeats."""
    from search.sampling.distributions import distributions, recorded_ranges
    from search.sampling.replay import replay
    from search.sampling.study_sampler import StudySampler

    ledger = open_ledger(location)
    metadata, records = ledger.metadata, ledger.trials()
    if any(record.kind is Kind.REPEAT for record in records):
        return
    ranges = recorded_ranges(metadata)
    source = StudySampler(
        distributions(ranges),
        {key: metadata.settings[key] for key in ranges},
        trials=metadata.budget,
        sampler="random",
        pruner="none",
        epochs=metadata.epochs,
        seed=int(metadata.settings["train.seed"]),
        off_below={key: r.off_below for key, r in ranges.items() if r.off_below is not None},
    )
    yield from replay(records, source)
