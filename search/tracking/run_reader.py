"""What MLflow holds about a study, read back; and the removal of its runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from search.tracking.client import open_client, pages


@dataclass(frozen=True)
class TrackedRun:
    """One run of a study."""

    run_id: str
    number: int | None
    """The trial; None for the run of the study."""
    status: str
    tags: dict[str, str]
    points: dict[str, list[tuple[int, float]]]
    """Step and value of every point, by metric."""


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
    """A run with its whole history."""
    tags = dict(run.data.tags)
    number = None if tags.get("fgseg.kind") == "study" else int(tags["fgseg.trial"])
    points = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return TrackedRun(run.info.run_id, number, run.info.status, tags, points)
