"""`python -m fgseg.predict`: masks and overlays for photos of any size."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finished_model import labels_of, tiny_run, trained_study
from PIL import Image
from safetensors.torch import load_file
from small_checkpoint import save_checkpoint
from small_data import run_python
from thin_street import THIN_STREET
from transformers import SegformerForSemanticSegmentation, pipeline

from fgseg.config.errors import ConfigError
from fgseg.config.settings import Fit
from fgseg.data import load_splits
from fgseg.data.batches import normalise
from fgseg.data.geometry import Geometry
from fgseg.data.windows import window_starts
from fgseg.devices import find_device
from fgseg.inference.export import processor_config
from fgseg.inference.photos import find_photos
from fgseg.inference.photos import labels_of as predict_photo
from fgseg.inference.tiling import labels_at, tiled_logits, without_padding
from fgseg.inference.trained_model import TrainedModel
from fgseg.predict import main
from search.export.model import export

pytestmark = pytest.mark.slow

FRAME = (64, 128)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cache: str) -> str:
    return str(export(*trained_study(tmp_path_factory.mktemp("predict") / "runs", cache))[0])


@pytest.fixture(scope="module")
def frame(cache: str) -> np.ndarray:
    return np.array(load_splits(tiny_run(cache).data, ("val",))["val"].images[0])


def mask_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_checkpoint_of_another_tool_is_predicted_with_its_own_classes(frame: np.ndarray, tmp_path: Path):
    """`save_pretrained` writes the names of tensors of the hub, which differ from those of Transformers' modules."""
    name = save_checkpoint(tmp_path / "weights")
    assert any(".linear_c." in key for key in load_file(tmp_path / "weights" / "model.safetensors"))
    processor = json.dumps(processor_config(Geometry(FRAME), None))
    (tmp_path / "weights" / "preprocessor_config.json").write_text(processor)
    Image.fromarray(frame).save(tmp_path / "street.png")
    assert main([name, str(tmp_path / "street.png"), "--out", str(tmp_path / "out")]) == 0
    model = SegformerForSemanticSegmentation.from_pretrained(name)
    with torch.inference_mode():
        logits = model(normalise(torch.from_numpy(frame).permute(2, 0, 1)[None])).logits
    expected = F.interpolate(logits, size=FRAME, mode="bilinear", align_corners=False).argmax(1)[0].numpy()
    assert (mask_of(tmp_path / "out" / "street.png") != expected).mean() < 1e-3  # ties in float32


@pytest.mark.parametrize("size", [(300, 150), (150, 200), (91, 333)])
def test_photo_gets_the_mask_of_the_pipeline(size: tuple[int, int], model: str, frame: np.ndarray, tmp_path: Path):
    photo = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
    photo.save(tmp_path / "street.png")
    assert main([model, str(tmp_path / "street.png"), "--out", str(tmp_path / "out")]) == 0
    expected = labels_of(pipeline("image-segmentation", model=model)(photo))
    differs = mask_of(tmp_path / "out" / "street.png") != expected
    assert differs.mean() < 1e-3  # ties in float32; test_export looks at them one by one


@pytest.mark.parametrize("fit", [(), ("--fit", "pad"), ("--fit", "crop")])
def test_tall_and_wide_photos_keep_their_size(fit: tuple[str, ...], model: str, frame: np.ndarray, tmp_path: Path):
    photos = {"tall": (90, 400), "wide": (500, 40), "tiny": (3, 5)}
    for name, size in photos.items():
        Image.fromarray(frame).resize(size).save(tmp_path / f"{name}.jpg")
    files = [str(tmp_path / f"{name}.jpg") for name in photos]
    assert main([model, *files, "--out", str(tmp_path / "out"), *fit]) == 0
    for name, size in photos.items():
        assert mask_of(tmp_path / "out" / f"{name}.png").shape[::-1] == size
        assert mask_of(tmp_path / "out" / f"{name}_overlay.jpg").shape == (size[1], size[0], 3)


def test_photo_is_turned_as_its_exif_data_say(model: str, frame: np.ndarray, tmp_path: Path):
    upright = Image.fromarray(frame)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "plain.png")
    assert main([model, str(tmp_path / "turned.png"), str(tmp_path / "plain.png"), "--out", str(tmp_path / "o")]) == 0
    assert np.array_equal(mask_of(tmp_path / "o" / "turned.png"), mask_of(tmp_path / "o" / "plain.png"))


def test_unreadable_pictures_are_named_at_the_end_and_the_others_done(
    model: str, frame: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    (folder / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(frame).save(folder / "a" / "good.png")
    assert main([model, str(folder), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert f"error: {folder / 'bad.jpg'}: cannot be decoded (not an image)" in said.err
    assert "1 of 2 pictures done" in said.out
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["good.png", "good_overlay.jpg"]


def test_masks_that_are_there_are_left_unless_overwrite_says_so(
    model: str, frame: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.fromarray(frame).save(tmp_path / "x.png")
    command = [model, str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (tmp_path / "out" / "x.png").write_bytes(b"mine")
    assert main(command) == 0
    assert "0 of 1 pictures done, 1 there already (--overwrite)" in capsys.readouterr().out
    assert (tmp_path / "out" / "x.png").read_bytes() == b"mine"
    assert main([*command, "--overwrite"]) == 0
    assert mask_of(tmp_path / "out" / "x.png").shape == FRAME


def test_interrupted_call_is_continued_by_the_same_one(
    model: str, frame: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("a", "b"):
        Image.fromarray(frame).save(tmp_path / f"{name}.png")
    command = [model, str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "out")]

    def interrupt(path: Path) -> Image.Image:
        if path.name == "b.png":
            raise KeyboardInterrupt
        return Image.open(path).convert("RGB")

    with monkeypatch.context() as patched:
        patched.setattr("fgseg.inference.photos.open_upright", interrupt)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert main(command) == 0
    assert "1 of 2 pictures done, 1 there already" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("a.png",), ("a.jpg", "a_overlay.jpg")])
def test_pictures_are_never_overwritten_by_what_is_predicted_of_them(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"--out: .*{names[-1]} is one of the pictures, which would be lost"):
        find_photos([tmp_path], tmp_path)


def test_masks_below_the_photos_are_no_photos(tmp_path: Path):
    (tmp_path / "a.jpg").touch()
    first = find_photos([tmp_path], tmp_path / "masks")
    (tmp_path / "masks").mkdir()
    for photo in first:
        photo.mask.touch()
        photo.overlay.touch()
    assert find_photos([tmp_path], tmp_path / "masks") == first


def test_masks_may_lie_above_the_photos(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (photo,) = find_photos([tmp_path / "photos"], tmp_path)
    assert photo.mask == tmp_path / "a.png"


def test_pictures_with_one_name_are_refused(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "x.png")
    with pytest.raises(ConfigError, match="would have the same mask as"):
        find_photos([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"], tmp_path / "out")
    assert len(find_photos([tmp_path / "a" / "x.png", tmp_path / "a" / "x.png", tmp_path], tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b0", "PHOTO"], "MODEL: b0 is a model with random weights"),
        (["./nowhere", "PHOTO"], "MODEL: no folder ./nowhere"),
        (["MODEL", "EMPTY"], "has no pictures"),
        (["MODEL", "PHOTO", "nowhere.png"], "PHOTOS: nowhere.png does not exist"),
        (["MODEL", "PHOTO", "--scale", "9"], "--scale: got 9, must be above 0 and at most 8"),
        (["MODEL", "PHOTO", "--device", "cuda:9"], "this machine has"),
        (["MODEL", "PHOTO", "--device", "tpu"], "must be cpu, cuda, cuda:<number> or auto"),
        (["MODEL", "PHOTO", "--scale", "0"], "--scale: got 0, must be above 0"),
        (["MODEL", "PHOTO", "--fit", "squeeze"], "--fit: invalid choice: 'squeeze'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "empty").mkdir()
    meant = {"MODEL": model, "PHOTO": str(tmp_path / "p.png"), "EMPTY": str(tmp_path / "empty")}
    assert main([*(meant.get(a, a) for a in arguments), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_mistakes_come_before_torch_is_imported():
    code = (
        "import sys; from fgseg.predict import main; code = main(['./nowhere', 'x', '--out', 'o'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    assert run_python(code) == "2 False\n"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 2048), FRAME), ((100, 203), FRAME), ((4000, 3000), (172, 128)), ((100, 1000), (64, 640))],
)
def test_picture_that_keeps_its_shape_is_seen_in_the_scale_of_training(
    size: tuple[int, int], expected: tuple[int, int]
):
    assert Geometry(FRAME, "crop").resized(size) == expected


def block_model(pixel_values: torch.Tensor) -> SimpleNamespace:
    """Each logit is the mean of a channel over its own 4x4 pixels, and the channels are the classes."""
    return SimpleNamespace(logits=F.avg_pool2d(pixel_values, 4, ceil_mode=True))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(64, 128), (96, 131), (301, 157), (33, 400), (2000, 1500)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_mask_lies_where_the_photo_shows_the_class(fit: Fit, size: tuple[int, int], scale: float):
    height, width = size
    photo = np.zeros((height, width, 3), np.uint8)
    photo[:, : width // 3, 0] = photo[:, width // 3 : width * 2 // 3, 1] = photo[:, width * 2 // 3 :, 2] = 255
    found = TrainedModel(Path(), Geometry(FRAME, fit), None, THIN_STREET)
    labels = predict_photo(Image.fromarray(photo), block_model, found, "cpu", scale)
    per_logit = 4 * max(1, width / Geometry(FRAME, fit).scaled(scale).resized(size)[1])
    columns = np.arange(width)
    for border in (width // 3, width * 2 // 3):
        columns = columns[np.abs(columns - border) > per_logit]  # a logit may hold both classes
    assert len(columns) > width / 3
    assert np.array_equal(labels[:, columns], photo.argmax(2)[:, columns])


def test_padding_is_cut_off_at_the_pixel_where_the_picture_ends():
    geometry, logits = Geometry((8, 16), "pad"), torch.arange(8.0).view(1, 2, 4)
    wide = F.interpolate(logits[None], size=(8, 16), mode="bilinear", align_corners=False)[0]
    assert torch.equal(without_padding(logits, geometry, (3, 3)), wide[:, :8, :8])
    assert torch.equal(without_padding(logits, geometry, (7, 21)), wide[:, :5, :])
    assert without_padding(logits, geometry, (4, 8)) is logits


@pytest.mark.parametrize(("length", "tile"), [(64, 64), (68, 64), (200, 64), (1364, 512)])
def test_tiles_cover_a_side_and_overlap(length: int, tile: int):
    begins = window_starts(length, tile)
    assert begins[0] == 0 and begins[-1] + tile == length
    assert all(after - before <= 0.8 * tile for before, after in pairwise(begins))
    assert all(begin % 4 == 0 for begin in begins)


def test_tiles_of_a_model_that_sees_single_blocks_are_the_whole():
    """Each logit depends on its own 4x4 pixels only: then no cut may show."""

    def model(pixel_values: torch.Tensor) -> SimpleNamespace:
        means = F.avg_pool2d(pixel_values, 4)
        return SimpleNamespace(logits=torch.cat([means, -means, means[:, :1] * 2], 1))

    image = torch.randint(0, 256, (3, 172, 260), dtype=torch.uint8)
    whole = model(normalise(image[None])).logits[0]
    assert torch.allclose(tiled_logits(model, image, FRAME), whole, atol=1e-5)  # weights are divided out in float32


def test_labels_of_large_photos_are_those_taken_at_once():
    logits = torch.randn(7, 9, 11)
    at_once = F.interpolate(logits[None], size=(50, 61), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(labels_at(logits, (50, 61)).long(), at_once)


def test_auto_takes_a_gpu_where_there_is_one():
    assert find_device("auto") == "cpu"
