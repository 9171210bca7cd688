"""Write the runs of a study on one MLflow server, from its ledger; see tracker.py and sync.py."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from fgseg.config.settings import nest
from fgseg.storage.store import Store
from fgseg.visual.overlays import read_overlays
from search.tracking.client import create_database, fill_database, load_client
from search.tracking.run_reader import TrackedRun, read_points, tracked_run, trial_number
from search.tracking.run_schema import (
    ENDING_TAGS,
    LedgerReader,
    MetricPoint,
    Phase,
    as_text,
    dataset_of,
    epoch_points,
    identity_tags,
    last_moment,
    milliseconds,
    parent_tags,
    run_name,
    study_ending,
    test_points,
    trial_ending,
    trial_tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata
    from search.study.location import StudyLocation

PARAMS_PER_REQUEST = 100
POINTS_PER_REQUEST = 20
"""Epochs in a request, which may hold 1000 values."""
MARKER_METRICS = ("val/miou", "test/miou")
"""The metrics whose steps say which points a run has."""


class StudyRunWriter:
    """The study's runs on one server, and what was read of them.  Its methods raise whatever MLflow raises."""

    def __init__(self, ledger: LedgerReader, location: "StudyLocation", metadata: "StudyMetadata"):
        client, uri = load_client(), location.tracking_uri
        create_database(uri, lambda whole: fill_database(whole, location.artifacts))
        self.client: MlflowClient = client(tracking_uri=uri)
        self.ledger, self.location, self.metadata = ledger, location, metadata
        self.experiment_id = self.find_experiment(None if uri.startswith("http") else location.artifacts)
        self.runs = self.find_runs()
        self.has_settings = False

    def find_experiment(self, artifacts: str | None) -> str:
        """Return the id of the study's experiment; creates or restores it where needed."""
        found = self.client.get_experiment_by_name(self.metadata.experiment)
        if found is None:
            return str(self.client.create_experiment(self.metadata.experiment, artifact_location=artifacts))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find_runs(self) -> dict[int | None, TrackedRun]:
        """The study's runs by trial number, the parent under None; a second run for one trial is deleted.

        A second one can arise when the server carries out a request after the client gave up on it.
        """
        known: dict[int | None, TrackedRun] = {}
        for run in sorted(self.search_runs(), key=lambda r: (r.info.start_time, r.info.run_id)):
            number = trial_number(run)
            if number in known:
                self.client.delete_run(run.info.run_id)
            else:
                known[number] = tracked_run(run)
        return known

    def search_runs(self) -> "Iterator[Run]":
        """Every run that carries the study's tags, page by page."""
        query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in identity_tags(self.metadata).items())
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def write_all(self, phase: Phase) -> None:
        """Bring every run in line with the ledger: the parent is opened first and closed last."""
        records = self.ledger.trials()
        self.open_study(records)
        for record in records:
            self.write_trial(record, phase)
        self.write_study(phase)
        self.write_settings()

    def write_changes(self, numbers: set[int | None]) -> None:
        """Bring some trials in line with the ledger, and the parent if one of them has ended or None is among them."""
        records = [self.ledger.trial(number) for number in numbers if number is not None]
        for record in records:
            self.write_trial(record, "running")
        if None in numbers or any(record.state != "running" for record in records):
            self.write_study("running")

    def open_study(self, records: "Sequence[TrialRecord]") -> TrackedRun:
        """The parent run; a new one begins with the first trial."""
        started = min((r.started for r in records), default=time.time())
        return self.open_run(None, self.metadata.study, parent_tags(self.metadata), started)

    def open_run(self, number: int | None, name: str, tags: dict[str, str], started: float) -> TrackedRun:
        """The run of a trial (or the parent) with these tags, created if it is not there yet."""
        if number not in self.runs:
            created = self.client.create_run(self.experiment_id, milliseconds(started), tags, name)
            self.runs[number] = tracked_run(created)
            self.runs[number].points.update({marker: [] for marker in MARKER_METRICS})
        return self.runs[number]

    def write_study(self, phase: Phase) -> None:
        """The parent: settings, validation metrics of the best trial (step: trials finished so far), and its state."""
        records = self.ledger.trials()
        best = self.ledger.best(records)
        run = self.open_study(records)
        status, ending = study_ending(records, phase)
        best_tag = {} if best is None else {"fgseg.best_trial": str(best.number)}
        self.log_tags_and_params(run, parent_tags(self.metadata) | best_tag | ending, self.metadata.settings)
        self.log_dataset(run)
        if best is not None and best.chosen is not None:
            finished = [r for r in records if r.state != "running"]
            values = {key: value for key, value in best.chosen.metrics().items() if key.startswith("val/")}
            self.log_metrics(run, [MetricPoint(len(finished), max(map(last_moment, finished)), values)])
        self.write_status(run, status, ending, max(map(last_moment, records), default=time.time()))

    def write_trial(self, record: "TrialRecord", phase: Phase) -> None:
        """One trial: tags, params, the epochs that are missing, and its state, in this order."""
        tags = trial_tags(self.metadata, record, self.runs[None].run_id)
        run = self.open_run(record.number, run_name(self.metadata, record.number), tags, record.started)
        status, ending = trial_ending(record, phase)
        # A driver killed while asking leaves a trial without all of its params, and params can never be corrected.
        asked = record.attempt > 0 or record.state != "running"
        self.log_tags_and_params(
            run, tags | ending, self.metadata.trial_settings(record) if asked and not run.has_params else {}
        )
        run.has_params |= asked
        self.log_dataset(run)
        self.log_metrics(run, epoch_points(record))
        self.log_metrics(run, test_points(record))
        if record.state == "complete" and SHOWN not in run.tags:
            store = self.location.trial_store(record.number)
            if count := log_overlays(self.client, run.run_id, store):
                self.log_tags_and_params(run, {SHOWN: str(count)}, {})
        self.write_status(run, status, ending, last_moment(record))

    def log_tags_and_params(self, run: TrackedRun, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Set the tags that differ and the params that are missing; a param that is there stays as it is."""
        from mlflow.entities import Param, RunTag

        new_tags = [RunTag(key, value) for key, value in tags.items() if run.tags.get(key) != value]
        new_params = [Param(key, as_text(value)) for key, value in params.items() if key not in run.params]
        for first in range(0, len(new_params), PARAMS_PER_REQUEST):
            self.client.log_batch(run.run_id, params=new_params[first : first + PARAMS_PER_REQUEST])
        if new_tags:
            self.client.log_batch(run.run_id, tags=new_tags)
        run.tags |= {tag.key: tag.value for tag in new_tags}
        run.params |= {param.key for param in new_params}

    def log_dataset(self, run: TrackedRun) -> None:
        """Name what a run reads, as a dataset of MLflow's."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = dataset_of(self.metadata)
        if data is not None and not run.has_dataset:
            dataset = Dataset(data.name, data.digest, "fgsearch", json.dumps(data.settings, sort_keys=True))
            purpose = InputTag("mlflow.data.context", "train, val")
            self.client.log_inputs(run.run_id, [DatasetInput(dataset, [purpose])])
            run.has_dataset = True

    def log_metrics(self, run: TrackedRun, points: Sequence[MetricPoint]) -> None:
        """Log points of the same metrics, leaving out those whose step the run has of the first of them."""
        from mlflow.entities import Metric

        if not points:
            return
        marker = points[0].marker
        if marker not in run.points:
            run.points[marker] = read_points(self.client, run.run_id, marker)
        logged = {step for step, _ in run.points[marker]}
        missing = [point for point in points if point.step not in logged]
        for first in range(0, len(missing), POINTS_PER_REQUEST):
            batch = missing[first : first + POINTS_PER_REQUEST]
            self.client.log_batch(run.run_id, metrics=[Metric(*row) for point in batch for row in point.rows()])
            run.points[marker] += [(point.step, point.values[marker]) for point in batch]

    def write_status(self, run: TrackedRun, status: str, ending: Mapping[str, str], ended: float) -> None:
        """Close or reopen a run, and take away the tags of an ending that no longer holds."""
        for key in ENDING_TAGS:
            if key in run.tags and key not in ending:
                self.client.delete_tag(run.run_id, key)
                del run.tags[key]
        if status == run.status:
            return
        if status == "RUNNING":
            self.client.update_run(run.run_id, status=status)
        else:
            self.client.set_terminated(run.run_id, status, milliseconds(ended))
        run.status = status

    def write_settings(self) -> None:
        """Keep the resolved settings with the parent as `settings.yaml`, once per connection."""
        if not self.has_settings:
            text = yaml.safe_dump(nest(self.metadata.settings), sort_keys=False, allow_unicode=True)
            self.client.log_text(self.runs[None].run_id, text, "settings.yaml")
            self.has_settings = True

    def write_file(self, name: str, data: bytes) -> None:
        """Keep a file, such as `report/report.html`, with the parent."""
        log_bytes(self.client, self.runs[None].run_id, name, data)


SHOWN = "fgseg.overlays"
"""Tag of a trial's run: how many overlays it has.  Set after they are written, so that none is written twice."""


def log_bytes(client: Any, run_id: str, name: str, data: bytes) -> None:
    """Keep a file with a run under a name such as `report/report.html`; MLflow takes files from a folder only."""
    location = PurePosixPath(name)
    with TemporaryDirectory(prefix="fgsearch-") as folder:
        path = Path(folder, location.name)
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), None if len(location.parts) == 1 else str(location.parent))


def log_overlays(client: Any, run_id: str, store: Store) -> int:
    """Log the overlays in a trial's folder to its run, as `overlays/<frame>.png`; returns their number."""
    overlays = read_overlays(store)
    for name, data in overlays.items():
        log_bytes(client, run_id, f"overlays/{name}", data)
    return len(overlays)
