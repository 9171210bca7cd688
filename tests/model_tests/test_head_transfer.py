"""The head of a checkpoint for other classes: matched by name, grouped, and fitted."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_checkpoint import CITYSCAPES, LABELS, save_checkpoint
from thin_street import THIN_STREET
from transformers import SegformerForSemanticSegmentation

from fgseg.config.loading import Layer, build
from fgseg.config.settings import ModelConfig
from fgseg.data import load_splits
from fgseg.data.device_frames import load_to_device
from fgseg.labels import VOID, load_label_set
from fgseg.metrics.evaluator import evaluate
from fgseg.metrics.iou import class_iou, miou
from fgseg.model.class_names import inherited_labels, match_classes, new_head_note, own_labels
from fgseg.model.head_transfer import (
    UNKNOWN_SHARE,
    GroupedModel,
    HeadRows,
    fit_rows,
    group_logits,
    load_grouped,
    sample_features,
    set_rows,
    transfer_rows,
)
from fgseg.model.segformer import build_model
from fgseg.training.inherited_head import inherited_rows
from fgseg.training.trainer import build_training_state
from fgseg.training.untrained import evaluate_untrained

IMAGES = torch.randn(3, 3, 64, 128, generator=torch.Generator().manual_seed(0))
COUNT = THIN_STREET.num_classes
REAL = Path(__file__).parents[3] / "shared"


def transferred(grouped: GroupedModel) -> HeadRows:
    """The rows fitted to all pixels of IMAGES."""
    return transfer_rows(grouped, *sample_features(grouped, IMAGES, torch.Generator(), count=10**6))


def test_classes_match_ignoring_case_spaces_and_underscores():
    names = {"0": "Traffic_Sign", "1": "trafficlight", "2": "CAR", "3": "tree", "10": "pole", "9": "sky"}
    assert match_classes(names, THIN_STREET) == [5, 6, 2, 3, 0, 4]
    assert match_classes({str(k): name for k, name in enumerate(CITYSCAPES)}, THIN_STREET) == LABELS


def test_class_of_no_name_is_left_out_where_there_is_no_background(tmp_path: Path):
    classes = load_label_set("cityscapes19")
    names = {"0": "car", "1": "dynamic", "2": "Traffic Light"}
    labels = match_classes(names, classes)
    assert labels == [classes.keys.index("car"), VOID, classes.keys.index("traffic_light")]
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    grouped = group_logits(logits, labels, classes.num_classes)
    assert torch.equal(grouped[:, [labels[0], labels[2]]], logits[:, [0, 2]])


def test_grouped_probabilities_are_the_sums_of_the_checkpoint_s():
    logits = 5 * torch.randn(50, 19, generator=torch.Generator().manual_seed(0))
    probs, grouped = logits.softmax(-1), group_logits(logits, LABELS, COUNT).softmax(-1)
    for label in range(COUNT):
        expected = probs[:, [k for k, found in enumerate(LABELS) if found == label]].sum(-1)
        assert torch.allclose(grouped[:, label], expected, atol=1e-6)  # float32 sums in another order


def test_label_that_a_checkpoint_lacks_has_no_probability_after_interpolation():
    grouped = group_logits(torch.randn(1, 4, 4, 2), [0, 1], 3).permute(0, 3, 1, 2)
    wide = F.interpolate(grouped, size=(9, 9), mode="bilinear", align_corners=False)
    assert torch.equal(wide.softmax(1)[:, 2], torch.zeros(1, 9, 9))


def test_grouped_model_is_the_checkpoint_with_its_own_head(tmp_path: Path):
    folder = save_checkpoint(tmp_path)
    stock = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = group_logits(stock(IMAGES).logits.permute(0, 2, 3, 1), LABELS, COUNT).permute(0, 3, 1, 2)
        found = load_grouped(tmp_path, LABELS, COUNT)(pixel_values=IMAGES).logits
    assert torch.allclose(found, expected, atol=1e-3)  # logits of about 30, computed in another order


def test_fit_finds_the_rows_behind_probabilities_that_rows_can_give():
    chance = torch.Generator().manual_seed(0)
    features = torch.rand(2000, 16, generator=chance) * torch.logspace(-2, 1, 16)
    targets = features @ (torch.randn(16, 5, generator=chance) / torch.logspace(-2, 1, 16)[:, None])
    rows = fit_rows(features.clone(), targets, HeadRows(torch.zeros(5, 16), torch.zeros(5)))
    found = F.linear(features, rows.weight, rows.bias).softmax(-1)
    assert (found - targets.softmax(-1)).abs().max() < 0.01  # the decay keeps the weights a little smaller


def test_transferred_head_predicts_as_the_grouped_checkpoint(tmp_path: Path):
    grouped = load_grouped(Path(save_checkpoint(tmp_path)), LABELS, COUNT)
    model = build_model(str(tmp_path), THIN_STREET).eval()
    set_rows(model, transferred(grouped))
    with torch.no_grad():
        before, after = (m(pixel_values=IMAGES).logits for m in (grouped, model))
    assert (before.argmax(1) == after.argmax(1)).float().mean() > 0.9
    assert F.kl_div(after.log_softmax(1), before.softmax(1), reduction="none").sum(1).mean() < 0.1


def test_new_class_begins_with_a_small_share_of_the_background(tmp_path: Path):
    names = [name for name in CITYSCAPES if name != "pole"]
    labels = match_classes({str(k): name for k, name in enumerate(names)}, THIN_STREET)
    grouped = load_grouped(Path(save_checkpoint(tmp_path, names)), labels, COUNT)
    features, targets = sample_features(grouped, IMAGES, torch.Generator())
    rows = transfer_rows(grouped, features.clone(), targets)
    probs = F.linear(features, rows.weight, rows.bias).softmax(-1)
    assert torch.allclose(probs[:, 4] / probs[:, 0], torch.tensor(UNKNOWN_SHARE), rtol=1e-3)  # float32


def test_random_weights_a_new_head_and_foreign_names_inherit_nothing(tmp_path: Path):
    folder, foreign = save_checkpoint(tmp_path / "a"), save_checkpoint(tmp_path / "b", ["cat", "dog"])
    assert inherited_labels(ModelConfig(name=folder), THIN_STREET) == LABELS
    for model in (ModelConfig(name="b0"), ModelConfig(name=folder, head="new"), ModelConfig(name=foreign)):
        assert inherited_labels(model, THIN_STREET) is None
        assert bool(new_head_note(model, THIN_STREET)) == (model.name == foreign)


def test_classifier_of_images_has_no_head_to_inherit(tmp_path: Path):
    folder = save_checkpoint(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("SegformerForSemanticSegmentation", "SegformerForImageClassification"))
    assert inherited_labels(ModelConfig(name=folder), THIN_STREET) is None


@pytest.mark.parametrize("damage", ["decode_head.classifier.weight", "decode_head.batch_norm.weight"])
def test_checkpoint_without_a_weight_of_its_head_is_refused(tmp_path: Path, damage: str):
    from safetensors.torch import load_file, save_file

    from fgseg.config.errors import ConfigError

    path = Path(save_checkpoint(tmp_path)) / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != damage}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"model\.name: .* has no fitting {damage} .* decode head's weights"):
        load_grouped(tmp_path, LABELS, COUNT)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="real frames are not here")
def test_fitted_head_keeps_the_miou_of_a_real_checkpoint(tmp_path: Path):
    """On all 122 frames of the documentation the loss is 0.005."""
    data = {"reader": "cityscapes", "root": str(REAL / "data" / "cityscapes256"), "height": 256, "width": 512}
    counts = {"train": 64, "val": 24, "test": 0, "cache": str(tmp_path)}
    checkpoint = REAL / "checkpoint" / "segformer-b0-cityscapes256"
    settings = {f"data.{name}": value for name, value in (data | counts).items()} | {"model.name": str(checkpoint)}
    run = build([Layer("test", settings)])
    splits = load_splits(run.data, ("train", "val"))
    state = build_training_state(run, 64, inherited_rows(run, splits["train"]))
    frames = load_to_device(splits, "ram", state.accelerator.device)["val"]
    fitted = miou(class_iou(evaluate(state.model.eval(), frames).sum(0), THIN_STREET))
    grouped = evaluate_untrained(run, own_labels(run.model, THIN_STREET), "val").miou
    assert grouped > 0.35 and abs(fitted - grouped) < 0.01
