"""What MLflow shows besides runs: a model of every trial that keeps its weights, and overlays over the epochs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_trial
from fake_ledger import METADATA, FakeLedger
from PIL import Image

from fgseg.visual.label_images import encode_png
from fgseg.visual.overlays import EPOCH_WIDTH_PX, LABELS, epoch_overlays_name, pack
from search.audit.trials import audit
from search.delete import delete
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation
from search.tracking.client import load_client
from search.tracking.epoch_images import recorded_overlay_epochs
from search.tracking.run_reader import read_runs
from search.tracking.sync import reconcile, sync
from search.tracking.trial_models import read_models

pytestmark = pytest.mark.slow

NAME = "quickstart-bas"
DATA = "0123456789abcdef" * 4


@pytest.fixture
def other(location: StudyLocation) -> StudyLocation:
    """A study that MLflow does not know yet, in a database that exists."""
    return replace(location, study=NAME)


def send(ledger: FakeLedger, location: StudyLocation) -> None:
    """In an experiment of its own, whose artifacts are in this copy of the storage."""
    reconcile(ledger, location, replace(METADATA, experiment="other", identity={"data": DATA}, keep_checkpoints=1))


def models(location: StudyLocation, study: str = NAME) -> list[Any]:
    client = load_client()(tracking_uri=location.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(client.search_logged_models(experiments, f"tags.`fgseg.study` = '{study}'"), key=lambda m: m.name)


def images(location: StudyLocation) -> list[str]:
    """The names of the images of trial 0, without their ends, which are random."""
    files = (Path(location.storage) / "mlartifacts").glob("*/artifacts/images/*")
    return sorted(path.name.partition("+timestamp")[0] + path.suffix for path in files)


def save_overlays(location: StudyLocation, epoch: int, side: int = 8) -> None:
    """Two square overlays of trial 0, which show noise."""
    random = np.random.default_rng(epoch)
    noise = random.integers(0, 256, (2, side, side, 3), np.uint8)
    pictures = {name: encode_png(picture) for name, picture in zip(("a", "b_1.png"), noise, strict=True)}
    location.trial_store(0).put(epoch_overlays_name(epoch), pack(pictures))


def test_model_has_the_settings_of_its_trial_and_metrics_that_name_the_data(other: StudyLocation):
    send(FakeLedger(make_trial(0), make_trial(1, "running"), make_trial(2, "pruned")), other)
    (model,) = models(other)
    (run,) = (run for run in read_runs(other.tracking_uri, NAME, "") if run.number == 0)
    assert (model.name, model.model_type, str(model.status)) == (f"{NAME}-000", "bas", "READY")
    assert (model.source_run_id, model.tags["fgseg.kind"]) == (run.run_id, "trial")
    assert model.params == run.params and model.params["loss.ssim"] == "0.25"
    of_run = {key: points[-1][1] for key, points in run.points.items() if key.startswith("val/")}
    assert {metric.key: metric.value for metric in model.metrics} == of_run
    assert {(m.dataset_name, m.dataset_digest, m.step) for m in model.metrics} == {("streets", DATA[:12], 3)}
    assert all(len(points) == 3 for key, points in run.points.items() if key.startswith("val/"))


def test_models_are_those_of_the_start_point_and_the_best_trials(other: StudyLocation):
    ledger = FakeLedger(make_trial(0), make_trial(1))
    send(ledger, other)
    assert [model.name for model in models(other)] == [f"{NAME}-000", f"{NAME}-001"]
    before = models(other)[0].model_id
    ledger.put(make_trial(2))
    send(ledger, other)
    assert [model.name for model in models(other)] == [f"{NAME}-000", f"{NAME}-002"]
    assert models(other)[0].model_id == before


def test_model_that_was_not_finished_or_is_there_twice_is_replaced(other: StudyLocation):
    client, ledger = load_client()(tracking_uri=other.tracking_uri), FakeLedger(make_trial(0))
    send(ledger, other)
    (whole,) = models(other)
    for status in ("PENDING", "READY"):
        again = client.create_logged_model(whole.experiment_id, name="again", tags=whole.tags)
        if status == "READY":
            client.finalize_logged_model(again.model_id, status)
    send(ledger, other)
    assert len(models(other)) == 1 and str(models(other)[0].status) == "READY"


def test_audit_names_models_that_are_missing_changed_or_of_no_kept_trial_and_sync_restores_them(location):
    client = load_client()(tracking_uri=location.tracking_uri)
    (model,) = models(location, "s")
    client.delete_logged_model(model.model_id)
    tags = model.tags | {"fgseg.trial": "1"}
    wrong = client.create_logged_model(model.experiment_id, name="wrong", tags=tags)
    lines = audit(location.storage, "s")
    assert lines == ["trial 0: 0 models in MLflow instead of 1", "trial 1: 1 models in MLflow instead of 0"]
    assert audit(location.storage, "s", interrupted=True) == []
    client.delete_logged_model(wrong.model_id)
    half = client.create_logged_model(model.experiment_id, name="half", tags=model.tags, params={"loss.ssim": "9"})
    unfinished, differing = audit(location.storage, "s")
    assert unfinished == "trial 0: its model in MLflow is not finished"
    assert differing.startswith("trial 0: its model in MLflow differs from the ledger: loss.ssim, val/miou, val/iou/")
    client.delete_logged_model(half.model_id)
    sync(location)
    assert audit(location.storage, "s") == []


def test_models_of_a_deleted_study_are_gone(location: StudyLocation):
    uid = open_ledger(location).metadata.uid
    assert len(read_models(location.tracking_uri, "s", uid)) == 1
    delete(location)
    assert read_models(location.tracking_uri, "s", uid) == []


def test_overlays_of_epochs_are_logged_once_with_the_epoch_as_step(other: StudyLocation):
    ledger = FakeLedger(make_trial(0, "running", done=1))
    save_overlays(other, 1)
    save_overlays(other, 2)  # not recorded yet
    send(ledger, other)
    first = [f"overlay~{name}+step+1{end}" for name in ("a", "b_1.png") for end in (".png", ".webp")]
    assert images(other) == first
    ledger.put(make_trial(0))
    for _ in range(2):
        send(ledger, other)
        assert images(other) == sorted([*first, *(name.replace("step+1", "step+2") for name in first)])
    (run,) = (run for run in read_runs(other.tracking_uri, NAME, "") if run.number == 0)
    assert (run.tags["fgseg.images"], run.tags["mlflow.loggedImages"]) == ("1, 2", "True")


def test_overlays_of_a_trial_with_a_short_schedule_are_those_of_its_epochs():
    short = make_trial(0, done=4, length=16, context={"schedule": 4})
    assert recorded_overlay_epochs(short) == [LABELS, 1, 2, 4]


def test_image_of_which_a_killed_process_has_logged_a_part_is_completed(other: StudyLocation):
    ledger = FakeLedger(make_trial(0, "running", done=1))
    send(ledger, other)
    (run,) = (run for run in read_runs(other.tracking_uri, NAME, "") if run.number == 0)
    client = load_client()(tracking_uri=other.tracking_uri)
    client.log_image(run.run_id, Image.new("RGB", (8, 4)), key="overlay/a", step=1)
    client.delete_tag(run.run_id, "mlflow.loggedImages")
    save_overlays(other, 1)
    send(ledger, other)
    assert images(other) == [f"overlay~{name}+step+1{end}" for name in ("a", "b_1.png") for end in (".png", ".webp")]
    assert {r.tags.get("mlflow.loggedImages") for r in read_runs(other.tracking_uri, NAME, "")} == {None, "True"}


def test_damaged_overlays_are_left_out(other: StudyLocation):
    save_overlays(other, 1)
    save_overlays(other, 2)
    data = other.trial_store(0).get(epoch_overlays_name(1))
    other.trial_store(0).put(epoch_overlays_name(1), data.replace(b"IDAT", b"IDAX"))
    send(FakeLedger(make_trial(0)), other)
    assert {name.rpartition("+")[2] for name in images(other)} == {"2.png", "2.webp"}


def test_largest_overlays_of_a_trial_take_at_most_3_mb(other: StudyLocation):
    """Two of sixteen pictures: four frames with their labels, and after three epochs.  The picture of a frame of any
    size, such as 1024x2048, has at most as many pixels as these; a square has the largest smaller file."""
    save_overlays(other, 1, math.isqrt(EPOCH_WIDTH_PX**2 // 2))
    send(FakeLedger(make_trial(0)), other)
    sizes = [path.stat().st_size for path in (Path(other.storage) / "mlartifacts").glob("*/artifacts/images/*")]
    assert len(sizes) == 4
    assert 2e6 < 8 * sum(sizes) <= 3e6


def test_audit_names_overlays_that_mlflow_lacks(location: StudyLocation):
    save_overlays(location, 2)
    assert audit(location.storage, "s") == ["trial 0: MLflow lacks the overlays of epochs 2"]
    sync(location)
    assert audit(location.storage, "s") == []
