"""Log a comparison of families as one MLflow run: means as metrics, tables as files."""

from collections.abc import Mapping
from typing import Any

from search.ledger.study_metadata import StudyMetadata
from search.study.location import StudyLocation
from search.tracking.client import load_client, pages, tracking_errors
from search.tracking.run_schema import SOURCE


def write_comparison(
    location: StudyLocation, metadata: StudyMetadata, comparison: dict[str, Any], files: Mapping[str, str]
) -> None:
    """Write a comparison into its MLflow run, creating the run if needed.  May be repeated.

    Args:
        location: of the first family's study, whose MLflow is used.
        metadata: of the same study; its experiment receives the run, its uid tags the run.
        comparison: as from `search.compare.scores.compare`.
        files: text by name, logged to the run.

    Raises:
        TrackingError: MLflow could not be reached or refused a request; the call may be repeated.
    """
    with tracking_errors(location.tracking_uri):
        log_comparison(load_client()(tracking_uri=location.tracking_uri), location, metadata, comparison, files)


def log_comparison(
    client: Any,
    location: StudyLocation,
    metadata: StudyMetadata,
    comparison: dict[str, Any],
    files: Mapping[str, str],
) -> None:
    """Create or update the run of a comparison; raises MLflow's errors.  See `write_comparison` for the arguments."""
    tags = {"fgseg.kind": "comparison", "fgseg.comparison": comparison["name"], "fgseg.uid": metadata.uid}
    found = client.get_experiment_by_name(metadata.experiment)
    folder = None if location.tracking_uri.startswith("http") else location.artifacts
    number = found.experiment_id if found else client.create_experiment(metadata.experiment, artifact_location=folder)
    query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    shown = figures(comparison)
    run = next(pages(client.search_runs, [number], query), None)
    if run is not None and run.data.metrics != shown:
        client.delete_run(run.info.run_id)  # MLflow can neither delete nor overwrite a logged metric
        run = None
    if run is None:
        run = client.create_run(number, tags=tags | SOURCE, run_name=f"comparison {comparison['name']}")
        for key, value in shown.items():
            client.log_metric(run.info.run_id, key, value, step=len(comparison["seeds"]))
    for name, text in files.items():
        client.log_text(run.info.run_id, text, name)
    client.set_terminated(run.info.run_id)


def figures(comparison: dict[str, Any]) -> dict[str, float]:
    """Return the mean test mIoU of each family and of the untrained checkpoint, and each gain over the baseline.

    IoU by class is in the files only: each metric adds a column to MLflow's table of runs.
    """
    named = {f"test/miou/{family['space']}": family["iou"]["mean"]["value"] for family in comparison["families"]}
    named |= {f"test/gain/{d['approach']}": d["iou"]["mean"]["value"] for d in comparison["against_baseline"]}
    if "checkpoint" in comparison:
        named["test/miou/checkpoint"] = comparison["checkpoint"]["iou"]["mean"]["value"]
    return {key: value for key, value in named.items() if value is not None}
