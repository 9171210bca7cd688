"""How pictures of any shape become frames, and where the picture lies in them."""

import json

import numpy as np
import pytest
from PIL import Image
from small_data import make, noise, save, settings, stripes, write_folder

from fgseg import data
from fgseg.config.settings import DataConfig
from fgseg.data.cache import cache_key
from fgseg.data.geometry import FILL, Geometry
from fgseg.labels import VOID

FRAME = (64, 128)
SHAPES = [(64, 128), (65, 129), (63, 200), (400, 90), (40, 500), (1, 1), (3, 5), (1, 300), (300, 1)]
"""Heights and widths: the frame's own, odd, wide, tall and tiny ones."""


def random_picture(size: tuple[int, int], channels: tuple[int, ...] = (3,)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (*size, *channels), dtype=np.uint8)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("frame", [FRAME, (50, 91)])
def test_every_picture_becomes_a_frame_and_its_labels_lie_where_it_lies(fit, size, frame):
    geometry, picture = Geometry(frame, fit), np.zeros((*size, 3), np.uint8)
    image, labels = geometry.frame(picture), geometry.frame(picture[..., 0])
    assert image.shape == (*frame, 3) and labels.shape == frame
    assert set(np.unique(image)) <= {0, FILL} and set(np.unique(labels)) <= {0, VOID}
    assert np.array_equal(image[..., 0] == FILL, labels == VOID)


@pytest.mark.parametrize("size", SHAPES)
def test_stretch_is_one_resizing_to_the_frame(size):
    image, labels = random_picture(size), random_picture(size, ())
    geometry = Geometry(FRAME)
    assert np.array_equal(geometry.frame(image), Image.fromarray(image).resize((128, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(geometry.frame(labels), Image.fromarray(labels).resize((128, 64), Image.Resampling.NEAREST))


@pytest.mark.parametrize(
    ("size", "resized"), [((400, 90), (64, 14)), ((40, 500), (10, 128)), ((3, 5), (64, 107)), ((300, 1), (64, 1))]
)
def test_pad_keeps_proportions_and_fills_below_or_to_the_right(size, resized):
    geometry, image = Geometry(FRAME, "pad"), random_picture(size)
    frame, (height, width) = geometry.frame(image), resized
    assert geometry.resized(size) == resized
    alone = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(frame[:height, :width], alone)
    assert (frame[height:] == FILL).all() and (frame[:, width:] == FILL).all()
    labels = geometry.frame(image[..., 0])
    assert (labels[height:] == VOID).all() and (labels[:, width:] == VOID).all()
    assert (labels[:height, :width] != VOID).all()


@pytest.mark.parametrize(
    ("size", "resized"),
    [((400, 90), (568, 128)), ((40, 500), (64, 800)), ((3, 5), (76, 128)), ((1000, 1900), (68, 128))],
)
def test_crop_keeps_proportions_and_takes_the_central_part(size, resized):
    geometry, image = Geometry(FRAME, "crop"), random_picture(size)
    whole = geometry.whole(image)
    assert geometry.resized(size) == whole.shape[:2] == resized
    top, left = (resized[0] - 64) // 2, (resized[1] - 128) // 2
    assert np.array_equal(geometry.frame(image), whole[top : top + 64, left : left + 128])


def test_odd_remainder_of_a_crop_is_cut_at_the_lower_and_right_side():
    rows = np.arange(64, dtype=np.uint8)[:, None].repeat(33, 1)
    assert Geometry((33, 33), "crop").resized((64, 33)) == (64, 33)
    assert Geometry((33, 33), "crop").frame(rows)[[0, -1], 0].tolist() == [15, 47]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_picture_of_nearly_the_shape_of_a_frame_is_resized_as_by_stretch(fit):
    picture = random_picture((100, 203))  # 1.5 % wider than the frame
    assert np.array_equal(Geometry(FRAME, fit).frame(picture), Geometry(FRAME).frame(picture))
    wider = random_picture((100, 205))
    assert not np.array_equal(Geometry(FRAME, fit).frame(wider), Geometry(FRAME).frame(wider))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(96, 130), (131, 97), (32, 512)])
def test_mask_that_becomes_an_input_and_returns_is_the_mask(fit, size):
    mask = np.repeat(np.arange(4, dtype=np.uint8), -(-size[1] // 4))[: size[1]][None].repeat(size[0], 0)
    geometry = Geometry((128, 256), fit)
    height, width = geometry.resized(size)
    shown = geometry.whole(mask)[:height, :width]
    assert shown.shape == (height, width)  # nothing of the picture was cut off
    back = np.asarray(Image.fromarray(shown).resize(size[::-1], Image.Resampling.NEAREST))
    borders = np.flatnonzero(np.diff(mask[0]))
    away = np.abs(np.arange(size[1])[:, None] - borders).min(1) > 2  # a border may move by the pixel that both round
    assert np.array_equal(back[:, away], mask[:, away])


@pytest.mark.parametrize(
    ("factor", "size"), [(1, FRAME), (2, (128, 256)), (0.01, (32, 32)), (1.01, (64, 128)), (1.3, (84, 168))]
)
def test_scaled_frames_have_sides_that_the_model_accepts(factor, size):
    assert Geometry(FRAME, "pad").scaled(factor) == Geometry(size, "pad")


def test_scale_of_one_leaves_any_size():
    assert Geometry((50, 91)).scaled(1.0).size == (50, 91)


@pytest.mark.parametrize("reader", ["streets", "cityscapes", "folder", "hub"])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_every_reader_has_the_fit_of_the_settings(reader, fit, tmp_path):
    cfg = make(reader, tmp_path).model_copy(update={"height": 64, "width": 64, "fit": fit})
    source = data.open_reader(cfg)
    frames = data.load_splits(cfg, names=["val"])["val"]
    image, _ = source.load(source.splits()["val"][0])
    assert np.array_equal(frames.images[0], Geometry((64, 64), fit).frame(image))
    if reader != "streets":  # which are drawn at the size of the settings
        assert (frames.labels == VOID).any() == (fit == "pad")
        assert frames.pixels.sum() == (frames.labels != VOID).sum()


def test_frames_of_each_fit_have_a_cache_of_their_own_and_the_default_has_the_old_one(tmp_path):
    cfg = make("cityscapes", tmp_path)
    reader = data.open_reader(cfg)
    keys = {fit: cache_key(reader, cfg.model_copy(update={"fit": fit}), []) for fit in ("stretch", "pad", "crop")}
    assert len(set(keys.values())) == 3
    streets, before_fit_existed = DataConfig(height=64, width=128), "698ecad6c72ece8a29c5eb6c74d840b1"  # FORMAT 3
    assert cache_key(data.open_reader(streets), streets, []) == before_fit_existed


def test_cache_of_an_earlier_version_is_used_and_reports_no_aspect(tmp_path):
    cfg = make("cityscapes", tmp_path)
    before = data.load_splits(cfg, names=["val"])["val"]
    assert before.aspect == 2.0
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    content = json.loads(meta.read_text())
    del content["aspect"]
    meta.write_text(json.dumps(content))
    decoded: list[int] = []
    after = data.load_splits(cfg, ["val"], lambda split, done, total: decoded.append(done))["val"]
    assert (decoded, after.aspect, after.fingerprint) == ([], None, before.fingerprint)
    assert data.aspect_notes(cfg.model_copy(update={"width": 40}), {"val": after}) == []


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        ("stretch", "stretch stretches their proportions by 100%"),
        ("pad", "pad fills 50% of each frame with void"),
        ("crop", "crop cuts off 50% of each picture"),
    ],
)
def test_frames_of_another_shape_than_most_pictures_are_told_once(fit, told, tmp_path):
    root = write_folder(tmp_path / "data")
    save(noise(0)[:, :20], root / "images" / "walk0" / "f0.png")  # one of another shape does not move the median
    save(stripes((50, 1, 2, 3, 4, 5, 6))[:, :20], root / "labels" / "walk0" / "f0.png")
    cfg = settings("folder", root, tmp_path / "cache", height=40, width=40, fit=fit)
    (note,) = data.aspect_notes(cfg, data.load_splits(cfg))
    assert note.startswith("data.fit: the pictures are 2.00 times as wide as high at the median, frames of 40x40 1.00")
    assert told in note


@pytest.mark.parametrize(("width", "notes"), [(83, 0), (77, 0), (76, 1), (85, 1)])
def test_shapes_within_five_per_cent_are_not_told(width, notes, tmp_path):
    frames = data.load_splits(make("cityscapes", tmp_path), names=["val"])
    assert len(data.aspect_notes(make("cityscapes", tmp_path).model_copy(update={"width": width}), frames)) == notes
