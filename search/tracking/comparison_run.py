"""A comparison as a run in MLflow: its figures as metrics, its pages as files."""

from collections.abc import Mapping
from typing import Any

from search.study.location import public_address
from search.tracking.client import TrackingError, environment, load_client, pages
from search.tracking.run_schema import SOURCE, StudyCard, explain


def write_comparison(uri: str, info: StudyCard, comparison: dict[str, Any], files: Mapping[str, str]) -> None:
    """Write a comparison into its run, which is created if it is not there; repeating it changes nothing.

    Args:
        uri: of MLflow.
        card: of the first family's study: its experiment, and its uid, which tells comparisons of one name apart.
        comparison: as from `search.compare.scores.compare`.
        files: text by name, kept with the run.

    Raises:
        TrackingError: MLflow could not be reached or refused a request.
    """
    with environment():
        try:
            write(load_client()(tracking_uri=uri), uri, info, comparison, files)
        except Exception as error:
            # `from None`, since MLflow's own message may hold the address with its password.
            raise TrackingError(f"MLflow at {public_address(uri)}: {explain(error)}") from None


def write(client: Any, uri: str, info: StudyCard, comparison: dict[str, Any], files: Mapping[str, str]) -> None:
    """The same, raising whatever MLflow raises."""
    tags = {"fgseg.kind": "comparison", "fgseg.comparison": comparison["name"], "fgseg.uid": info.uid}
    found = client.get_experiment_by_name(info.experiment)
    location = None if uri.startswith("http") else info.artifacts
    number = found.experiment_id if found else client.create_experiment(info.experiment, artifact_location=location)
    query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    shown = figures(comparison)
    run = next(pages(client.search_runs, [number], query), None)
    if run is not None and run.data.metrics != shown:
        client.delete_run(run.info.run_id)  # a metric can neither be taken back nor lose its last step
        run = None
    if run is None:
        run = client.create_run(number, tags=tags | SOURCE, run_name=f"comparison {comparison['name']}")
        for key, value in shown.items():
            client.log_metric(run.info.run_id, key, value, step=len(comparison["seeds"]))
    for name, text in files.items():
        client.log_text(run.info.run_id, text, name)
    client.set_terminated(run.info.run_id)


def figures(comparison: dict[str, Any]) -> dict[str, float]:
    """The mIoU of every family and its gain over the baseline, as metrics; the classes are in the files.

    More of them would fill the columns of MLflow's table of runs, where every repeat has its own.
    """
    named = {f"test/miou/{family['space']}": family["iou"]["mean"]["value"] for family in comparison["families"]}
    named |= {f"test/gain/{d['approach']}": d["iou"]["mean"]["value"] for d in comparison["against_baseline"]}
    return {key: value for key, value in named.items() if value is not None}
