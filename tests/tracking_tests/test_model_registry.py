"""MLflow's model registry: a version per best model, that Transformers loads and runs."""

import time

import numpy as np
import pytest
import torch
from finished_model import STUDY, labels_of, tiny_run, trained_study
from PIL import Image

from fgseg.data import load_splits
from fgseg.inference.trained_model import find_trained, load_trained
from fgseg.metrics.evaluator import predict_labels
from fgseg.storage.store import join
from search.delete import delete
from search.export.model import export, read_origin
from search.study.location import StudyLocation
from search.tracking.client import TrackingError, load_client
from search.tracking.model_registry import model_id, register, register_here
from search.tracking.sync import sync

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory, cache: str) -> StudyLocation:
    """A study whose model is exported and registered as version 1."""
    location, ledger = trained_study(tmp_path_factory.mktemp("registry") / "runs", cache, trials=1)
    folder, _ = export(location, ledger)
    sync(location)
    assert register(location.tracking_uri, read_origin(folder), folder, 120) == 1
    return location


def test_load_model_predicts_what_our_evaluation_predicts(location: StudyLocation, cache: str):
    import mlflow

    mlflow.set_tracking_uri(location.tracking_uri)
    segment = mlflow.transformers.load_model(f"models:/{STUDY}@best")
    image = np.array(load_splits(tiny_run(cache).data, ("val",))["val"].images[0])
    expected = predict_labels(
        load_trained(find_trained(join(location.folder, "model"))), torch.from_numpy(image).permute(2, 0, 1)[None]
    )
    differs = labels_of(segment(Image.fromarray(image))) != expected[0].numpy()
    assert differs.mean() < 1e-3  # ties in float32; test_export looks at them one by one


def test_model_hangs_at_the_study_s_run_with_its_scores(location: StudyLocation):
    client = load_client()(tracking_uri=location.tracking_uri)
    version = client.get_model_version_by_alias(STUDY, "best")
    logged, parent = client.get_logged_model(model_id(version)), client.get_run(version.run_id)
    assert parent.data.tags["fgseg.kind"] == "study"
    assert (parent.info.status, logged.experiment_id) == ("FINISHED", parent.info.experiment_id)
    assert (logged.tags["fgseg.trial"], logged.tags["fgseg.epoch"]) == ("0", "3")
    assert {m.key: m.value for m in logged.metrics}["val/miou"] == parent.data.metrics["val/miou"]


def test_the_same_model_is_not_registered_again(location: StudyLocation):
    origin = read_origin(join(location.folder, "model"))
    assert register_here(location.tracking_uri, origin, join(location.folder, "model")) == 1
    client = load_client()(tracking_uri=location.tracking_uri)
    assert [v.version for v in client.search_model_versions(f"name = '{STUDY}'")] == [1]


def test_what_takes_too_long_or_is_interrupted_is_given_up(location: StudyLocation):
    origin, folder = read_origin(join(location.folder, "model")), join(location.folder, "model")
    with pytest.raises(TrackingError, match=r"was not registered \(it took more than 0\.01 s\)"):
        register(location.tracking_uri, origin, folder, 0.01)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="interrupted"):
        register(location.tracking_uri, origin, folder, 60, stop=lambda: True)
    assert time.monotonic() - started < 5


def test_study_without_runs_in_mlflow_is_told_what_to_do(location: StudyLocation):
    origin = read_origin(join(location.folder, "model")) | {"uid": "another"}
    with pytest.raises(LookupError, match=r"holds no run of this study; python -m search\.sync writes it"):
        register_here(location.tracking_uri, origin, join(location.folder, "model"))


def test_deleting_the_study_deletes_its_versions(location: StudyLocation):  # the last test: it takes the study away
    delete(location)
    assert list(load_client()(tracking_uri=location.tracking_uri).search_registered_models()) == []
