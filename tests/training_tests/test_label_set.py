"""A training with another label set than the default one: results, model, evaluation and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fgseg import evaluate, predict
from fgseg.config.settings import nest
from fgseg.inference.trained_model import find_trained
from fgseg.labels import load_label_set
from fgseg.storage.store import open_store
from fgseg.training.loop import train
from fgseg.visual.overlays import read_overlays

pytestmark = pytest.mark.slow


def test_model_of_the_streets_own_classes_is_trained_evaluated_and_used(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tiny(train__epochs=1, data__labels="streets", class_weights__sky=2, copy_paste__prob=1)
    classes, folder = load_label_set("streets"), tmp_path / "trial"
    (result,) = train(run, folder)
    assert list(result.iou) == [c.key for c in classes.foreground]
    assert (result.thin, len(result.confusion)) == (["fence", "pole", "traffic_light", "traffic_sign"], 14)
    assert 0 <= result.metrics()["val/thin_miou"] <= 1
    found = find_trained(str(folder)).classes
    assert (found.id2label, found.thin[0].colour) == (classes.id2label, classes.thin[0].colour)
    assert len(read_overlays(open_store(folder))) == 4
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(nest(run.flat())))
    options = [str(folder), "--config", str(tmp_path / "run.yaml"), "--device", "cpu"]
    assert evaluate.main([*options, "--out", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == result.miou
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": run.data.model_dump() | {"labels": "thin_street"}}))
    assert evaluate.main([str(folder), "--config", str(tmp_path / "other.yaml")]) == 2
    assert "has 14 other classes, must have background, fence, car" in capsys.readouterr().err
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(tmp_path / "photo.png")
    assert predict.main([str(folder), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 0


def test_colours_of_a_label_set_of_ones_own_go_with_the_model(tiny, tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "classes: [{name: rest}, {name: car, ids: [26], colour: [9, 8, 7]}, {name: pole, ids: [17], thin: true}]"
    )
    train(tiny(train__epochs=1, data__labels=str(path)), tmp_path / "trial")
    own = load_label_set(str(path))
    path.unlink()
    found = find_trained(str(tmp_path / "trial")).classes
    assert [(c.name, c.colour, c.thin) for c in found.classes] == [(c.name, c.colour, c.thin) for c in own.classes]
    assert found.background


def test_set_without_background_leaves_other_pixels_out(tiny, tmp_path: Path):
    (result,) = train(tiny(train__epochs=1, data__labels="cityscapes19", loss__lovasz=1), tmp_path)
    assert list(result.iou)[:2] == ["road", "sidewalk"] and len(result.confusion) == 19
    assert result.miou >= 0
