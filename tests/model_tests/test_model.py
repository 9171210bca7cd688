"""The model: its variants, its new head, its faster decode head, and words for a hub that cannot be reached."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from thin_street import CLASSES, THIN_STREET
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from fgseg.config.errors import ConfigError
from fgseg.model.pretrained import VARIANTS, check_weights
from fgseg.model.segformer import build_model, scratch_config


def save_nineteen_classes(folder: Path) -> Path:
    """A checkpoint as for the 19 Cityscapes classes, in the form of the hub's."""
    torch.manual_seed(0)
    config = SegformerConfig(**scratch_config("small", THIN_STREET).to_dict() | {"num_labels": 19})
    config.num_labels = 19
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def both_heads(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of ours and the stock one with the same weights, in evaluation mode."""
    torch.manual_seed(0)
    ours = build_model(name, THIN_STREET).eval()
    stock = SegformerForSemanticSegmentation(scratch_config(name, THIN_STREET)).eval()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@pytest.mark.parametrize("name", ["small", "b0"])
def test_commuted_head_computes_what_the_stock_head_computes(name: str):
    ours, stock = both_heads(name)
    images = torch.randn(2, 3, 64, 96)
    logits = [model(pixel_values=images).logits for model in (ours, stock)]
    scale = logits[1].abs().max()
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * scale  # float32 sums in another order
    for value in logits:
        value.square().sum().backward()
    for (key, ours_param), stock_param in zip(ours.named_parameters(), stock.parameters(), strict=True):
        difference = (ours_param.grad - stock_param.grad).norm()
        assert difference <= 1e-4 * stock_param.grad.norm() + 1e-6, key


def test_saved_model_is_an_ordinary_transformers_folder(tmp_path: Path):
    ours = build_model("small", THIN_STREET).eval()
    ours.save_pretrained(tmp_path)
    loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == {c.label: c.name for c in CLASSES}
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(ours(images).logits, loaded(images).logits, atol=1e-5)  # another order of sums


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_has_a_head_for_seven_classes(name: str):
    with torch.device("meta"):
        model = build_model(name, THIN_STREET)
    assert model.decode_head.classifier.weight.shape == (7, VARIANTS[name].decoder, 1, 1)


def test_b0_has_the_published_number_of_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model("b0", THIN_STREET).parameters())
    assert round(count / 1e6, 2) == 3.72


def test_checkpoint_keeps_its_encoder_and_gets_a_new_head(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = save_nineteen_classes(tmp_path)
    capfd.readouterr()
    model = build_model(str(folder), THIN_STREET)
    assert capfd.readouterr() == ("", "")  # neither a progress bar nor a table of what was replaced
    stock = SegformerForSemanticSegmentation.from_pretrained(folder)
    assert model.decode_head.classifier.weight.shape[0] == 7
    assert model.config.id2label[5] == "traffic sign"
    for key, value in stock.segformer.state_dict().items():
        assert torch.equal(value, model.segformer.state_dict()[key]), key


def test_hub_that_cannot_be_reached_is_told_in_our_words(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        ConfigError, match=r"model\.name: nobody/nothing is neither cached nor could it be fetched"
    ) as caught:
        build_model("nobody/nothing", THIN_STREET)
    assert "use b0 to start from random weights" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b9", "no such model 'b9'"),
        ("./nowhere", "no folder ./nowhere"),
        ("some/where/deep", "no folder some/where/deep"),
    ],
)
def test_name_that_is_no_model_is_told(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_weights(name)


def test_real_checkpoint_loads_with_a_new_head(shared: Path):
    model = build_model(str(shared / "checkpoint" / "segformer-b0-cityscapes256"), THIN_STREET)
    assert model(torch.randn(1, 3, 64, 128)).logits.shape == (1, 7, 16, 32)


def test_weights_in_half_precision_are_trained_in_full(tmp_path: Path):
    SegformerForSemanticSegmentation.from_pretrained(save_nineteen_classes(tmp_path)).half().save_pretrained(tmp_path)
    assert {p.dtype for p in build_model(str(tmp_path), THIN_STREET).parameters()} == {torch.float32}


@pytest.mark.parametrize("damage", ["renamed", "truncated"])
def test_weights_that_are_not_the_encoders_are_told_instead_of_replaced(tmp_path: Path, damage: str):
    weights = save_nineteen_classes(tmp_path) / "model.safetensors"
    if damage == "renamed":
        save_file({f"module.{key}": value for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="has no fitting segformer" if damage == "renamed" else "cannot be loaded"):
        build_model(str(tmp_path), THIN_STREET)
