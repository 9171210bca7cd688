"""Compare the models of a study's trials in MLflow with its ledger.  Pure functions of the records read from both."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from search.audit.mlflow_runs import shorten
from search.ledger.records import TrialRecord
from search.tracking.run_schema import as_text, model_points
from search.tracking.trial_models import TrackedModel


def audit_models(
    models: Sequence[TrackedModel], records: Sequence[TrialRecord], kept: Collection[int], behind: bool
) -> Iterator[str]:
    """Yield one line per difference between MLflow's models and the trials that keep their weights.

    Args:
        models: all models of the study's trials, read before the ledger.
        records: all trials of the ledger.
        kept: numbers of the COMPLETE trials whose folders have their weights.
        behind: whether MLflow may lack models, and have unfinished or outdated ones, as while a driver runs or after it
            was killed.  Values that MLflow has are compared in any case.
    """
    by_number: dict[int, list[TrackedModel]] = defaultdict(list)
    for model in models:
        by_number[model.number].append(model)
    for number in sorted({*by_number, *kept}):
        found, expected = len(by_number[number]), int(number in kept)
        if found != expected and not behind:
            yield f"trial {number}: {found} models in MLflow instead of {expected}"
    for record in records:
        for model in by_number[record.number] if record.chosen is not None else ():
            yield from audit_model(model, record, behind)


def audit_model(model: TrackedModel, record: TrialRecord, behind: bool) -> Iterator[str]:
    """Yield the differences between a COMPLETE trial and its model: status, searched settings and metrics."""
    if not (model.is_ready or behind):
        yield f"trial {record.number}: its model in MLflow is not finished"
    params = {key: as_text(record.params[key]) for key in record.params.keys() - record.overrides.keys()}
    values = {key: value for point in model_points(record) for key, value, _, _ in point.rows()}
    differing = [key for key in sorted(params) if model.params.get(key, params[key] if behind else None) != params[key]]
    differing += [key for key, value in values.items() if model.metrics.get(key, value if behind else None) != value]
    differing += [key for key in model.metrics if key not in values]
    if differing:
        yield f"trial {record.number}: its model in MLflow differs from the ledger: {shorten(differing)}"
