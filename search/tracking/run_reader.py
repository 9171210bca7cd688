"""What MLflow holds about a study, read back; and the removal of its runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from search.tracking.client import open_client, pages


@dataclass
class TrackedRun:
    """One run of a study, as last read from or written to MLflow."""

    run_id: str
    number: int | None
    """The trial; None for the run of the study."""
    status: str
    tags: dict[str, str]
    params: set[str]
    """Names of the logged params."""
    has_dataset: bool
    has_params: bool = False
    """Whether all of its params are known to be logged."""
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Step and value of every logged point, by metric; only of the metrics that were read."""


def trial_number(run: Any) -> int | None:
    """Return the trial that an MLflow run belongs to; None for the run of the study."""
    tags = run.data.tags
    return None if tags.get("fgseg.kind") == "study" else int(tags["fgseg.trial"])


def tracked_run(run: Any) -> TrackedRun:
    """Convert an MLflow run, without its points."""
    data, inputs = run.data, run.inputs
    return TrackedRun(
        run.info.run_id,
        trial_number(run),
        run.info.status,
        dict(data.tags),
        set(data.params),
        bool(inputs and inputs.dataset_inputs),
    )


def read_points(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Read the step and value of every point of a metric."""
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def read_runs(uri: str, study: str, uid: str) -> list[TrackedRun]:
    """Every run of a study in any experiment, with all of its points; an address without a database has none.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with open_client(uri) as client:
        return [read_run(client, run) for run in find_runs(client, study, uid)] if client else []


def delete_runs(uri: str, study: str, uid: str) -> int:
    """Delete every run of a study, and return how many; MLflow keeps deleted runs until its `mlflow gc` is called.

    Raises:
        TrackingError: the server could not be reached or refused a request; calling again deletes the rest.
    """
    with open_client(uri) as client:
        runs = list(find_runs(client, study, uid)) if client else []
        for run in runs:
            client.delete_run(run.info.run_id)
        return len(runs)


def find_runs(client: Any, study: str, uid: str) -> Iterator[Any]:
    """The runs that carry the study's tags, page by page."""
    experiments = [e.experiment_id for e in pages(client.search_experiments)]
    query = f"tags.`fgseg.study` = '{study}'" + (f" AND tags.`fgseg.uid` = '{uid}'" if uid else "")
    if experiments:
        yield from pages(client.search_runs, experiments, query)


def read_run(client: Any, run: Any) -> TrackedRun:
    """Convert an MLflow run, and read the points of all its metrics."""
    found = tracked_run(run)
    found.points = {metric: read_points(client, found.run_id, metric) for metric in run.data.metrics}
    return found
