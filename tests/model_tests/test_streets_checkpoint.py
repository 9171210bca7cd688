"""The checkpoint in the package, `model.name: streets`."""

import pytest
import torch
from safetensors.torch import load_file
from thin_street import THIN_STREET

from fgseg.config.loading import Layer, build
from fgseg.config.settings import ModelConfig
from fgseg.inference.trained_model import find_trained
from fgseg.labels import load_label_set
from fgseg.model.class_names import inherited_labels
from fgseg.model.pretrained import SHIPPED, check_weights, fetch_weights
from fgseg.training.untrained import evaluate_untrained

MODEL = ModelConfig(name="streets")
FOLDER = SHIPPED["streets"]


def test_name_means_a_folder_of_the_package_from_any_folder(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_weights("streets")
    assert fetch_weights("streets") == find_trained("streets").folder == FOLDER
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} == {
        path.name for path in FOLDER.iterdir()
    }


def test_weights_take_less_than_a_megabyte_in_half_precision():
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size < 1e6
    assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float16}


def test_every_class_of_the_thin_street_set_is_inherited():
    labels = inherited_labels(MODEL, THIN_STREET)
    assert labels is not None and set(labels) == set(range(THIN_STREET.num_classes))
    assert inherited_labels(MODEL, load_label_set("streets")) == list(range(14))


def test_untrained_checkpoint_reads_scenes_that_it_has_never_seen(cache: str):
    settings = {"data.train": 1, "data.val": 8, "data.test": 0, "data.cache": cache, "model.name": "streets"}
    run = build([Layer("test", settings)])
    labels = inherited_labels(run.model, run.label_set())
    assert labels is not None
    result = evaluate_untrained(run, labels, "val")
    assert result.miou > 0.4
    assert min(result.iou.values()) > 0.05
