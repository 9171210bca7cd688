"""What a trained model sees, kept with its trial and shown in MLflow."""

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from builders import make_trial
from fake_ledger import METADATA, FakeLedger
from kept_study import finished_study
from PIL import Image
from random_frames import some_frames
from thin_street import THIN_STREET

from fgseg.model.segformer import build_model
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from fgseg.training.loop import train
from fgseg.visual.overlays import (
    LABELS,
    epoch_overlays_name,
    is_whole,
    overlay_epochs,
    overlay_name,
    pack,
    read_epoch_overlays,
    read_overlays,
    save_overlays,
    short_names,
)
from search.audit.files import audit_files
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation
from search.tracking.client import load_client
from search.tracking.sync import reconcile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A trial's folder with the overlays of five random frames."""
    store = LocalStore(tmp_path_factory.mktemp("trials") / "0")
    torch.manual_seed(0)
    save_overlays(store, build_model("small", THIN_STREET), some_frames(), THIN_STREET, epoch=3, epochs=3)
    return store


def test_overlays_are_whole_pictures_of_photo_truth_and_prediction(kept: LocalStore):
    overlays = read_overlays(kept)
    assert list(overlays) == ["0.png", "1.png", "3.png", "4.png"]
    assert all(map(is_whole, overlays.values()))
    assert {Image.open(BytesIO(png)).size for png in overlays.values()} == {(3 * 128 + 2 * 6, 64)}


def test_name_of_any_frame_becomes_one_of_a_file():
    assert overlay_name(2, "zurich/000 1:a.b") == "overlay-2-zurich_000_1_a.b.png"


def test_overlays_of_an_epoch_are_predictions_by_frame(kept: LocalStore):
    overlays = read_epoch_overlays(kept, 3)
    assert overlays is not None and list(overlays) == ["0", "1", "3", "4"]
    assert {Image.open(BytesIO(png)).size for png in overlays.values()} == {(128, 64)}
    assert read_epoch_overlays(kept, 2) == read_epoch_overlays(kept, LABELS) == {}


@pytest.mark.parametrize(("epochs", "expected"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 4, 8])])
def test_overlays_are_of_the_first_the_middle_and_the_last_epoch(epochs: int, expected: list[int]):
    assert overlay_epochs(epochs) == expected


def test_names_of_frames_are_distinct_and_accepted_by_mlflow():
    assert short_names(["ulm/1 ä:x", "東京", "大阪", "b.png"]) == ["ulm_1_x", "2-_", "3-_", "b.png"]
    assert short_names(["a" * 300]) == ["a" * 80]


def test_training_leaves_labels_and_overlays_after_first_middle_and_last_epoch(tiny, tmp_path: Path):
    run, store = tiny(train__epochs=4), LocalStore(tmp_path)
    seen: list[tuple[int, list[int]]] = []

    def look(epoch: EpochResult) -> None:
        seen.append((len(read_overlays(store)), [k for k in range(5) if read_epoch_overlays(store, k)]))

    train(run, tmp_path, look)
    assert seen == [(0, [LABELS, 1]), (0, [LABELS, 1, 2]), (0, [LABELS, 1, 2]), (4, [LABELS, 1, 2, 4])]


@pytest.mark.slow
def test_audit_names_an_overlay_that_is_cut_short(tmp_path: Path):
    location = finished_study(tmp_path)
    ledger, store = open_ledger(location), location.trial_store(0)
    store.put("overlay-1-town.png", b"\x89PNG\r\n\x1a\n half")
    store.put(epoch_overlays_name(2), pack({"town": b"\x89PNG"})[:-1])
    faults = list(audit_files(location.folder, ledger.trials(), ledger.best(), open_allowed=False))
    assert faults == [
        "trial 0: the overlay of town.png is damaged",
        "trial 0: the overlays of epoch 2 are damaged",
    ]


@pytest.mark.slow
def test_mlflow_shows_overlays_with_their_trial_once(kept: LocalStore, tmp_path: Path):
    uri, trials = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "s" / "trials"
    shutil.copytree(kept.folder.parent, trials)
    location, metadata = StudyLocation(str(tmp_path), "s", uri), replace(METADATA, study="s", experiment="q")
    for _ in range(2):
        reconcile(FakeLedger(make_trial(0), make_trial(1, "running")), location, metadata)
        shown = sorted(path.name for path in (tmp_path / "mlartifacts").glob("*/artifacts/overlays/*"))
        assert shown == ["0.png", "1.png", "3.png", "4.png"]
        shutil.rmtree(trials, ignore_errors=True)  # the second time there is nothing left to be read
    client = load_client()(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("q").experiment_id], "tags.`fgseg.kind` = 'trial'")
    assert {run.data.tags["fgseg.trial"]: run.data.tags.get("fgseg.overlays") for run in runs} == {"0": "4", "1": None}
