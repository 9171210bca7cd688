"""Write the MLflow runs of a study from its ledger; used by tracker.py and sync.py."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import yaml

from fgseg.config.settings import nest
from search.ledger.records import kept_trials
from search.ledger.untrained import untrained_of
from search.tracking.client import create_database, fill_database, load_client, pages
from search.tracking.epoch_images import log_images, missing_images
from search.tracking.precedence import PausingClient
from search.tracking.run_files import OVERLAY_COUNT, log_bytes, log_overlays
from search.tracking.run_reader import CHECKPOINT, TrackedRun, read_points, tracked_run, trial_number
from search.tracking.run_schema import (
    ENDING_TAGS,
    LedgerReader,
    MetricPoint,
    Phase,
    as_text,
    checkpoint_settings,
    checkpoint_tags,
    dataset_of,
    epoch_points,
    front_tag,
    identity_tags,
    last_moment,
    milliseconds,
    outcome_points,
    parent_tags,
    run_name,
    study_ending,
    study_points,
    test_points,
    trial_ending,
    trial_tags,
)
from search.tracking.trial_models import TrialModels

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from fgseg.checkpoints.untrained_result import UntrainedResult
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata
    from search.study.location import StudyLocation

PARAMS_PER_REQUEST = 100
"""MLflow's limit of params in one `log_batch`."""
POINTS_PER_REQUEST = 20
"""Epochs in one `log_batch`, whose limit is 1000 values."""


class StudyRunWriter:
    """Creates and updates the runs of a study on one MLflow server.  Not thread-safe; methods raise MLflow's errors.

    Every method may be repeated: it compares the ledger with the runs as last read or written, and sends the rest.

    Args:
        ledger: of the study; only read.
        location: of the study; its MLflow is written, its storage read for overlays.
        metadata: of the study.
        pause: called before each request.
    """

    def __init__(
        self,
        ledger: LedgerReader,
        location: "StudyLocation",
        metadata: "StudyMetadata",
        pause: Callable[[], None] = lambda: None,
    ):
        client, uri = load_client(), location.tracking_uri
        create_database(uri, lambda whole: fill_database(whole, location.artifacts))
        self.client = cast("MlflowClient", PausingClient(client(tracking_uri=uri), pause))
        self.ledger, self.location, self.metadata = ledger, location, metadata
        self.experiment_id = self.find_experiment(None if uri.startswith("http") else location.artifacts)
        self.runs = self.find_runs()
        self.models = TrialModels(self.client, metadata, self.experiment_id)
        self.has_settings = False

    def find_experiment(self, artifacts: str | None) -> str:
        """Return the ID of the study's experiment; creates it if missing, restores it if deleted."""
        found = self.client.get_experiment_by_name(self.metadata.experiment)
        if found is None:
            return str(self.client.create_experiment(self.metadata.experiment, artifact_location=artifacts))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find_runs(self) -> dict[int | None, TrackedRun]:
        """Return the study's runs by trial number, see `trial_number`; deletes duplicates of a trial's run.

        A duplicate arises when the server executes a request after the client's timeout.
        """
        known: dict[int | None, TrackedRun] = {}
        for run in sorted(self.search_runs(), key=lambda r: (r.info.start_time, r.info.run_id)):
            number = trial_number(run)
            if number in known:
                self.client.delete_run(run.info.run_id)
            else:
                known[number] = tracked_run(run)
        return known

    def refresh_runs(self) -> None:
        """Read the runs' tags and status again: a request of an earlier driver may have arrived late."""
        for number, found in self.find_runs().items():
            known = self.runs.setdefault(number, found)
            if known.run_id == found.run_id:
                known.tags, known.status = found.tags, found.status
            else:
                self.runs[number] = found

    def search_runs(self) -> "Iterator[Run]":
        """Yield every run of the experiment with the study's tags."""
        query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in identity_tags(self.metadata).items())
        yield from pages(self.client.search_runs, [self.experiment_id], query)

    def write_all(self, phase: Phase) -> None:
        """Update every run from the ledger; opens the parent first and closes it last."""
        if phase != "running":
            self.refresh_runs()
        records = self.ledger.trials()
        self.open_study(records)
        for record in records:
            self.write_trial(record, phase)
        self.write_study(phase)
        self.write_settings()

    def write_changes(self, numbers: set[int]) -> None:
        """Update the runs of some trials, and the parent if one of them has ended."""
        records = [self.ledger.trial(number) for number in numbers]
        for record in records:
            self.write_trial(record, "running")
        if any(not record.is_open for record in records):
            self.write_study("running")

    def open_study(self, records: "Sequence[TrialRecord]") -> TrackedRun:
        """Return the parent run; creates it with the start time of the first trial."""
        started = min((r.started for r in records), default=time.time())
        return self.open_run(None, self.metadata.study, parent_tags(self.metadata), started)

    def open_run(self, number: int | None, name: str, tags: dict[str, str], started: float) -> TrackedRun:
        """Return the run of a trial, see `trial_number`; creates it with these tags and start time if missing."""
        if number not in self.runs:
            created = self.client.create_run(self.experiment_id, milliseconds(started), tags, name)
            self.runs[number] = tracked_run(created)
            self.runs[number].is_new = True
        return self.runs[number]

    def write_study(self, phase: Phase) -> None:
        """Update the parent with the best trial's metrics, the untrained checkpoint's run, and the models."""
        records = self.ledger.trials()
        best = self.ledger.best(records)
        untrained = untrained_of(self.location, self.metadata)
        run = self.open_study(records)
        status, ending = study_ending(records, phase)
        best_tag = {} if best is None else {"fgseg.best_trial": str(best.number)} | front_tag(records, self.metadata)
        self.log_tags_and_params(run, parent_tags(self.metadata) | best_tag | ending, self.metadata.settings)
        self.log_dataset(run)
        if best is not None and best.chosen is not None:
            for point in study_points(best, records, untrained):
                self.log_metrics(run, [point])
        if untrained and untrained.metrics():
            self.write_checkpoint(untrained, run.run_id)
        self.write_models(records, best)
        self.write_status(run, status, ending, max(map(last_moment, records), default=time.time()))

    def write_checkpoint(self, result: "UntrainedResult", parent_id: str) -> None:
        """Create the run of the untrained checkpoint; replaces that of an earlier evaluation."""
        tags = checkpoint_tags(self.metadata, result, parent_id)
        known = self.runs.get(CHECKPOINT)
        if known is not None and known.tags.get("fgseg.evaluated") != tags["fgseg.evaluated"]:
            self.client.delete_run(known.run_id)  # MLflow cannot overwrite a logged metric
            del self.runs[CHECKPOINT]
        run = self.open_run(CHECKPOINT, f"{self.metadata.space}/checkpoint", tags, result.seconds)
        self.log_tags_and_params(run, tags, checkpoint_settings(self.metadata))
        self.log_dataset(run)
        self.log_metrics(run, [MetricPoint(0, result.seconds, result.metrics())])
        self.write_status(run, "FINISHED", {}, result.seconds)

    def write_models(self, records: "Sequence[TrialRecord]", best: "TrialRecord | None") -> None:
        """Create the models of trials that keep their weights, and delete those of others."""
        metadata = self.metadata
        kept = kept_trials(records, best, metadata.keep_checkpoints, metadata.constraint.floors)
        for record in records:
            if record.number not in kept:
                self.models.delete(record.number)
            elif record.number in self.runs:
                self.models.create(self.runs[record.number].run_id, record)

    def write_trial(self, record: "TrialRecord", phase: Phase) -> None:
        """Update the run of a trial: tags, params, missing epochs, overlays and status, in this order."""
        tags = trial_tags(self.metadata, record, self.runs[None].run_id)
        run = self.open_run(record.number, run_name(self.metadata, record.number), tags, record.started)
        status, ending = trial_ending(record, phase)
        params = {} if run.has_params else self.metadata.trial_settings(record)
        self.log_tags_and_params(run, tags | ending, params)
        run.has_params = True
        self.log_dataset(run)
        self.log_metrics(run, epoch_points(record))
        self.log_metrics(run, test_points(record))
        self.log_metrics(run, outcome_points(record))
        if missing_images(run, record):
            logged = log_images(self.client, run, record, self.location.trial_store(record.number))
            self.log_tags_and_params(run, logged, {})
        if record.state == "complete" and OVERLAY_COUNT not in run.tags:
            store = self.location.trial_store(record.number)
            if count := log_overlays(self.client, run.run_id, store):
                self.log_tags_and_params(run, {OVERLAY_COUNT: str(count)}, {})
        self.write_status(run, status, ending, last_moment(record))

    def log_tags_and_params(self, run: TrackedRun, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Set tags that differ and params that are missing; a logged param is never changed."""
        from mlflow.entities import Param, RunTag

        new_tags = [RunTag(key, value) for key, value in tags.items() if run.tags.get(key) != value]
        new_params = [Param(key, as_text(value)) for key, value in params.items() if key not in run.params]
        for first in range(0, len(new_params), PARAMS_PER_REQUEST):
            self.client.log_batch(run.run_id, params=new_params[first : first + PARAMS_PER_REQUEST])
        if new_tags:
            self.client.log_batch(run.run_id, tags=new_tags)
        run.tags |= {tag.key: tag.value for tag in new_tags}
        run.params |= {param.key: param.value for param in new_params}

    def log_dataset(self, run: TrackedRun) -> None:
        """Log the study's data set as the input of a run, once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = None if run.has_dataset else dataset_of(self.metadata)
        if data is not None:
            dataset = Dataset(data.name, data.digest, "fgsearch", json.dumps(data.settings, sort_keys=True))
            purpose = InputTag("mlflow.data.context", "train, val")
            self.client.log_inputs(run.run_id, [DatasetInput(dataset, [purpose])])
            run.has_dataset = True

    def log_metrics(self, run: TrackedRun, points: Sequence[MetricPoint]) -> None:
        """Log points of the same metrics, skipping steps at which the run has the marker metric."""
        from mlflow.entities import Metric

        if not points:
            return
        marker = points[0].marker
        if marker not in run.points:
            run.points[marker] = [] if run.is_new else read_points(self.client, run.run_id, marker)
        logged = {step for step, _ in run.points[marker]}
        missing = [point for point in points if point.step not in logged]
        for first in range(0, len(missing), POINTS_PER_REQUEST):
            batch = missing[first : first + POINTS_PER_REQUEST]
            self.client.log_batch(run.run_id, metrics=[Metric(*row) for point in batch for row in point.rows()])
            run.points[marker] += [(point.step, point.values[marker]) for point in batch]

    def write_status(self, run: TrackedRun, status: str, ending: Mapping[str, str], ended: float) -> None:
        """Close or reopen a run, and delete ENDING_TAGS that no longer apply; `ended` in seconds since 1970."""
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
        """Log the resolved settings to the parent as `settings.yaml`, once per writer."""
        if not self.has_settings:
            text = yaml.safe_dump(nest(self.metadata.settings), sort_keys=False, allow_unicode=True)
            self.client.log_text(self.runs[None].run_id, text, "settings.yaml")
            self.has_settings = True

    def write_file(self, name: str, data: bytes) -> None:
        """Log a file, such as `report/report.html`, to the parent; replaces one of the same name."""
        log_bytes(self.client, self.runs[None].run_id, name, data)
