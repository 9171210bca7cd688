"""The finished model: an ordinary Transformers folder that predicts what our own evaluation judges."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_history, make_trial
from finished_model import labels_of, tiny_run, trained_study
from PIL import Image
from thin_street import CLASSES
from transformers import SegformerForSemanticSegmentation, pipeline

from fgseg.config.errors import ConfigError
from fgseg.config.settings import Fit
from fgseg.data import load_splits
from fgseg.data.batches import normalise
from fgseg.data.geometry import Geometry
from fgseg.inference.export import model_files, replace_folder
from fgseg.inference.photos import labels_of as predict_photo
from fgseg.inference.trained_model import find_trained, load_trained
from fgseg.metrics.evaluator import predict_labels
from fgseg.results import SupersededError
from search.export.__main__ import main
from search.export.model import ORIGIN, export, kept_weights, register_once
from search.ledger.catalog import open_ledger
from search.ledger.ledger import Ledger
from search.study.location import REGISTERED, StudyLocation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache: str) -> tuple[StudyLocation, Ledger]:
    return trained_study(tmp_path_factory.mktemp("export") / "runs", cache)


@pytest.fixture(scope="module")
def folder(study: tuple[StudyLocation, Ledger]) -> Path:
    return Path(export(*study)[0])


@pytest.fixture(scope="module")
def images(cache: str) -> np.ndarray:
    return np.array(load_splits(tiny_run(cache).data, ("val",))["val"].images)


def margin(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """By how much the best class of each pixel leads, in logits: (H, W)."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = model(pixel_values=normalise(batch)).logits
    wide = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    best = wide[0].topk(2, dim=0).values
    return (best[0] - best[1]).numpy()


def test_model_stays_where_another_driver_has_taken_the_study_over(study: tuple[StudyLocation, Ledger], tmp_path: Path):
    location, ledger = study
    model = tmp_path / "model"
    replace_folder(model, {"a": b"1"})

    def superseded() -> None:
        raise SupersededError("another driver has taken it over")

    with pytest.raises(SupersededError):
        replace_folder(model, {"a": b"2"}, superseded)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (model / "a").read_bytes() == b"1"
    with pytest.raises(SupersededError, match="another driver"):  # the ledger is not locked
        export(location, ledger, out=str(tmp_path / "other"), confirm=ledger.check_lock)
    assert not (tmp_path / "other").exists()


def test_pipeline_gives_the_masks_of_our_evaluation(folder: Path, images: np.ndarray):
    segment = pipeline("image-segmentation", model=str(folder))
    ours = load_trained(find_trained(str(folder)))
    for image, expected in zip(images, predict_labels(ours, torch.from_numpy(images).permute(0, 3, 1, 2)), strict=True):
        differs = labels_of(segment(Image.fromarray(image))) != expected.numpy()
        # Both heads sum in float32, in another order: only pixels where two classes tie to that precision may differ.
        assert (margin(ours, image)[differs] < 1e-4).all()
        assert differs.mean() < 1e-3


def test_pipeline_resizes_a_large_photo_as_the_readers_do(folder: Path, images: np.ndarray):
    photo = Image.fromarray(images[0]).resize((256, 128), Image.Resampling.BICUBIC)
    small = np.asarray(photo.resize((128, 64), Image.Resampling.BILINEAR))
    segment = pipeline("image-segmentation", model=str(folder))
    theirs = segment.image_processor(images=[photo], return_tensors="pt")["pixel_values"]
    expected = normalise(torch.from_numpy(small.copy()).permute(2, 0, 1)[None])
    assert torch.allclose(theirs, expected, atol=1e-6)  # float32, where the order of scaling and shifting differs


def test_model_that_was_trained_on_crops_keeps_their_size_and_predicts_as_its_evaluation_does(
    folder: Path, images: np.ndarray, tmp_path: Path
):
    name = with_geometry(folder, Geometry((64, 128)), tmp_path / "model", (32, 64))
    found, plain = find_trained(name), find_trained(str(folder))
    assert (found.geometry, found.window, plain.window) == (Geometry((64, 128)), (32, 64), None)
    model = load_trained(found)
    in_windows = predict_labels(model, torch.from_numpy(images[:1]).permute(0, 3, 1, 2), found.window)[0]
    image = Image.fromarray(images[0])
    assert (predict_photo(image, model, found, "cpu", 1.0) == in_windows.numpy()).mean() > 0.999  # ties of two classes
    assert pipeline("image-segmentation", model=name)(image)


def with_geometry(folder: Path, geometry: Geometry, target: Path, window: tuple[int, int] | None = None) -> str:
    """Export the model of a folder again, as if it was trained with another geometry."""
    names = ("config.json", "model.safetensors")
    files = model_files(*((folder / name).read_bytes() for name in names), geometry, "", window)
    replace_folder(target, files)
    return str(target)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_pipeline_and_predict_give_the_labels_of_evaluation_for_a_photo_of_the_shape_of_frames(
    fit: Fit, folder: Path, images: np.ndarray, tmp_path: Path
):
    name = with_geometry(folder, Geometry((64, 128), fit), tmp_path / "model")
    found, image = find_trained(name), Image.fromarray(images[0])
    model = load_trained(found)
    assert found.geometry == Geometry((64, 128), fit)
    evaluated = predict_labels(model, torch.from_numpy(images[:1]).permute(0, 3, 1, 2))[0].numpy()
    assert np.array_equal(predict_photo(image, model, found, "cpu", 1.0), evaluated)
    assert (labels_of(pipeline("image-segmentation", model=name)(image)) == evaluated).mean() > 0.999  # ties


def test_predicted_photo_of_another_shape_is_seen_as_the_reader_saw_it(folder: Path, images: np.ndarray, tmp_path):
    """With pad the labels of the part that shows the photo are those of the evaluated frame, without interpolation."""
    found = find_trained(with_geometry(folder, Geometry((64, 128), "pad"), tmp_path / "model"))
    model, geometry = load_trained(found), Geometry((64, 128), "pad")
    for photo in (images[0][:, :77], images[0][:37]):  # neither is enlarged or shrunk: 64x77 and 37x128
        height, width = geometry.resized(photo.shape[:2])
        assert (height, width) == photo.shape[:2]
        frame = torch.from_numpy(geometry.frame(photo)).permute(2, 0, 1)[None]
        evaluated = predict_labels(model, frame)[0, :height, :width].numpy()
        assert np.array_equal(predict_photo(Image.fromarray(photo), model, found, "cpu", 1.0), evaluated)


def test_model_exported_before_geometries_existed_stretches(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor.pop("fit") == "stretch"
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert find_trained(str(tmp_path / "model")).geometry == Geometry((64, 128), "stretch")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor | {"fit": "fold"}))
    with pytest.raises(ConfigError, match=r"has fit 'fold', must be one of: stretch, pad, crop"):
        find_trained(str(tmp_path / "model"))


def test_state_dict_has_the_stock_names(folder: Path):
    model, report = SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert model.config.id2label == {c.label: c.name for c in CLASSES}
    assert model.config.label2id == {c.name: c.label for c in CLASSES}


def test_card_tells_data_settings_scores_and_licence(folder: Path, study: tuple[StudyLocation, Ledger]):
    info, record = (folder / "README.md").read_text(), study[1].trial(0)
    assert "**Synthetic data**" in info
    assert "no other model's licence applies" in info
    assert f"| **mIoU** | **{record.value:.4f}** |" in info
    assert "| `loss.ssim` | 0.4 |" in info
    assert study[0].storage not in info and "data.cache" not in info


def test_export_writes_only_when_the_best_changed(
    study: tuple[StudyLocation, Ledger], folder: Path, cache: str, tmp_path: Path
):
    location, ledger = study
    written = (folder / "README.md").stat().st_mtime_ns
    assert export(location, ledger) == (str(folder), False)
    assert (folder / "README.md").stat().st_mtime_ns == written
    copy = str(tmp_path / "copy")
    assert export(location, ledger, out=copy) == (copy, True)


def test_folder_of_other_things_is_not_replaced(study: tuple[StudyLocation, Ledger], tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no exported model, and is not replaced"):
        export(*study, out=str(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_replaced_folder_is_whole_and_nothing_else_stays(tmp_path: Path):
    (tmp_path / ".model.0badc0de.part").mkdir()  # of a call that was killed
    replace_folder(tmp_path / "model", {"a": b"1", "b": b"2"})
    replace_folder(tmp_path / "model", {"a": b"3"})
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "model").iterdir()] == [("a", b"3")]


def test_failed_replacement_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace_folder(tmp_path / "model", {"a": b"1"})
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_folder(tmp_path / "model", {"a": b"2"})
    assert (tmp_path / "model" / "a").read_bytes() == b"1"


def test_command_exports_and_says_where(
    study: tuple[StudyLocation, Ledger], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--study", study[0].study, "--storage", study[0].storage, "--out", str(tmp_path / "m")]
    assert main([*options, "--trial", "0"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'm'} written\n"
    assert main([*options, "--trial", "7"]) == 2
    assert "has no trial 7; it has 1, counted from 0" in capsys.readouterr().err


def test_trial_without_weights_is_told_with_those_that_have_some(tmp_path: Path, study: tuple[StudyLocation, Ledger]):
    storage = tmp_path / "runs"
    shutil.copytree(study[0].storage, storage)
    location = StudyLocation(str(storage), study[0].study, study[0].tracking_uri)
    for manifest in (storage / location.study / "trials" / "0").glob("checkpoint-*"):
        manifest.unlink()
    with pytest.raises(ConfigError, match=r"weights of trial 0 \(complete\) were not kept .* those of: none"):
        export(location, open_ledger(location))


def test_trial_folder_says_what_is_needed_to_use_its_checkpoints(study: tuple[StudyLocation, Ledger], cache: str):
    trial = Path(study[0].folder) / "trials" / "0"
    assert json.loads((trial / "settings.json").read_text()) == tiny_run(cache).flat()
    found = find_trained(str(trial))
    assert (found.geometry, found.manifest.epoch if found.manifest else 0) == (Geometry((64, 128)), 3)


def test_temporary_file_of_a_registration_that_was_killed_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in (ORIGIN, f"{REGISTERED}.0123.tmp"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr("search.export.model.register", lambda *arguments: 1)
    location = StudyLocation("runs", "s", "http://mlflow")
    register_once(location, str(tmp_path), lambda: False)
    assert {path.name for path in tmp_path.iterdir()} == {ORIGIN, REGISTERED}
    assert (tmp_path / REGISTERED).read_text() == "http://mlflow"


def test_weights_are_those_of_the_epoch_that_was_selected_when_the_trial_ended(study: tuple[StudyLocation, Ledger]):
    record = make_trial(0, epochs=make_history(0.9, 0.2, 0.3))
    manifest = kept_weights(study[0], record)
    assert manifest is not None and manifest.epoch == record.selected == 3
