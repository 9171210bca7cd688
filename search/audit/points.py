"""Check that every point of a search is the one that the sampler suggests after the trials before it."""

from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation


def audit_points(location: StudyLocation) -> tuple[int, list[str]]:
    """Suggest every point of a search again; a study of repeats has none.

    Returns:
        The number of points, and one line for every point that is not suggested again or cannot be: the space, the
        seed or the version of Optuna have changed since.
    """
    from search.sampling.distributions import distributions, recorded_ranges
    from search.sampling.replay import replay
    from search.sampling.study_sampler import StudySampler

    ledger = open_ledger(location)
    metadata, records = ledger.metadata, ledger.trials()
    if any(record.repeat is not None for record in records):
        return 0, []
    ranges = recorded_ranges(metadata)
    source = StudySampler(
        distributions(ranges),
        {key: metadata.settings[key] for key in ranges},
        trials=metadata.budget,
        sampler="random",
        pruner="none",
        epochs=metadata.epochs,
        seed=int(metadata.settings["train.seed"]),
        objectives=metadata.objectives,
        floors=metadata.constraint.floors,
        off_below={key: r.off_below for key, r in ranges.items() if r.off_below is not None},
    )
    return len(records), list(replay(records, source))
