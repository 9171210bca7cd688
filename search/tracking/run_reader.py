"""Read the MLflow runs of a study, and delete them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from search.tracking.client import open_client, pages

CHECKPOINT = -1
"""In place of a trial's number: the run of the untrained checkpoint."""


@dataclass
class TrackedRun:
    """One run of a study, as last read from or written to MLflow."""

    run_id: str
    number: int | None
    """Number of the trial; None for the parent run of the study, CHECKPOINT for the run of the untrained checkpoint."""
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    """Logged params by name."""
    has_dataset: bool
    is_new: bool = False
    """Whether this process created the run, so that it had no metrics before."""
    has_params: bool = False
    """Whether all params are known to be logged and need no further comparison."""
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) of every logged point, by metric; contains only metrics that were read."""


def trial_number(run: Any) -> int | None:
    """Return the trial number of an MLflow run; None for the study's parent run, CHECKPOINT for the checkpoint's."""
    tags = run.data.tags
    if tags.get("fgseg.kind") == "checkpoint":
        return CHECKPOINT
    return None if tags.get("fgseg.kind") == "study" else int(tags["fgseg.trial"])


def tracked_run(run: Any) -> TrackedRun:
    """Convert an MLflow run; its metrics are not read."""
    data, inputs = run.data, run.inputs
    return TrackedRun(
        run.info.run_id,
        trial_number(run),
        run.info.status,
        dict(data.tags),
        dict(data.params),
        bool(inputs and inputs.dataset_inputs),
    )


def read_points(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Read (step, value) of every logged point of a metric."""
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def read_runs(uri: str, study: str, uid: str) -> list[TrackedRun]:
    """Return every run of a study in any experiment, with all metrics; empty if the SQLite file does not exist.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with open_client(uri) as client:
        return [read_run(client, run) for run in find_runs(client, study, uid)] if client else []


def delete_runs(uri: str, study: str, uid: str) -> int:
    """Delete every run of a study; returns their number.  MLflow keeps deleted runs until `mlflow gc` is run.

    An empty `uid`, that of a study which was never started, deletes nothing: other studies may have the same name.

    Raises:
        TrackingError: the server could not be reached or refused a request; repeating the call deletes the rest.
    """
    with open_client(uri) as client:
        runs = list(find_runs(client, study, uid)) if client and uid else []
        for run in runs:
            client.delete_run(run.info.run_id)
        return len(runs)


def find_runs(client: Any, study: str, uid: str) -> Iterator[Any]:
    """Yield the runs with the tags of a study, in any experiment; an empty `uid` matches all studies of the name."""
    experiments = experiment_ids(client)
    query = f"tags.`fgseg.study` = '{study}'" + (f" AND tags.`fgseg.uid` = '{uid}'" if uid else "")
    if experiments:
        yield from pages(client.search_runs, experiments, query)


def experiment_ids(client: Any) -> list[str]:
    """Return the IDs of all experiments."""
    return [experiment.experiment_id for experiment in pages(client.search_experiments)]


def read_run(client: Any, run: Any) -> TrackedRun:
    """Convert an MLflow run, and read the history of all its metrics."""
    found = tracked_run(run)
    found.points = {metric: read_points(client, found.run_id, metric) for metric in run.data.metrics}
    return found
