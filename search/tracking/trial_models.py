"""Finished trials that keep their weights as logged models, which MLflow's page *Models* compares."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.tracking.client import open_client, pages
from search.tracking.run_reader import experiment_ids
from search.tracking.run_schema import as_text, dataset_of, identity_tags, kind_of, model_points

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata

FORBIDDEN = re.compile(r"[/:.%\"']")
"""Characters that MLflow refuses in the name of a model."""


@dataclass(frozen=True)
class TrackedModel:
    """The logged model of a trial, as read from MLflow."""

    model_id: str
    number: int
    """Number of the trial."""
    is_ready: bool
    """False if a process was killed while it wrote the model."""
    params: dict[str, str]
    metrics: dict[str, float]
    """Values by name; each has one step."""


class TrialModels:
    """Creates and deletes the logged models of a study.  Not thread-safe; methods raise MLflow's errors.

    Args:
        client: of MLflow.
        metadata: of the study.
        experiment_id: of the study's experiment.
    """

    def __init__(self, client: Any, metadata: "StudyMetadata", experiment_id: str):
        self.client, self.metadata, self.experiment_id = client, metadata, experiment_id
        self.ids: dict[int, str] = {}
        for model in search_models(client, [experiment_id], metadata.study, metadata.uid):
            if model.is_ready and model.number not in self.ids:
                self.ids[model.number] = model.model_id
            else:  # of a process that was killed, or of a request that a slow server carried out twice
                client.delete_logged_model(model.model_id)

    def create(self, run_id: str, record: "TrialRecord") -> None:
        """Create the model of a COMPLETE trial, with its settings and metrics, unless it exists.

        Args:
            run_id: the trial's run.
            record: of the trial.
        """
        if record.number in self.ids:
            return
        from mlflow.entities import Metric

        settings = self.metadata.trial_settings(record)
        model = self.client.create_logged_model(
            self.experiment_id,
            name=FORBIDDEN.sub("_", f"{self.metadata.study}-{record.number:03d}"),
            source_run_id=run_id,
            tags=identity_tags(self.metadata) | {"fgseg.kind": kind_of(record), "fgseg.trial": str(record.number)},
            params={key: as_text(value) for key, value in settings.items()},
            model_type=self.metadata.space,
        )
        data = dataset_of(self.metadata)
        link = (model.model_id, data.name, data.digest) if data else (model.model_id,)
        # The run has these points already; MLflow stores equal ones once.
        rows = [row for point in model_points(record) for row in point.rows()]
        self.client.log_batch(run_id, metrics=[Metric(*row, *link) for row in rows])
        self.client.finalize_logged_model(model.model_id, "READY")
        self.ids[record.number] = model.model_id

    def delete(self, number: int) -> None:
        """Delete the model of a trial; does nothing if there is none."""
        if number in self.ids:
            self.client.delete_logged_model(self.ids[number])
            del self.ids[number]


def search_models(client: Any, experiments: list[str], study: str, uid: str) -> Iterator[TrackedModel]:
    """Yield the models of a study's trials; an empty `uid` matches all studies of the name.

    The registered model of a study, a logged model too, does not have the tags of its trials.
    """
    query = f"tags.`fgseg.study` = '{study}'" + (f" AND tags.`fgseg.uid` = '{uid}'" if uid else "")
    for model in list(pages(client.search_logged_models, experiments, query)) if experiments else ():
        metrics = {metric.key: metric.value for metric in model.metrics or ()}
        is_ready = str(model.status) == "READY"
        yield TrackedModel(model.model_id, int(model.tags["fgseg.trial"]), is_ready, dict(model.params), metrics)


def read_models(uri: str, study: str, uid: str) -> list[TrackedModel]:
    """Return the models of a study's trials in any experiment; empty if the SQLite file does not exist.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with open_client(uri) as client:
        return list(search_models(client, experiment_ids(client), study, uid)) if client else []


def delete_models(uri: str, study: str, uid: str) -> None:
    """Delete the models of a study's trials; an empty `uid` deletes nothing, see `delete_runs`.

    Raises:
        TrackingError: the server could not be reached or refused a request; repeating the call deletes the rest.
    """
    with open_client(uri) as client:
        for model in search_models(client, experiment_ids(client), study, uid) if client and uid else ():
            client.delete_logged_model(model.model_id)
