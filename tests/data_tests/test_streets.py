"""The procedural street scenes: repeatable, exactly labelled, holding every class, and looking like what they say."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from thin_street import CLASSES, FOREGROUND, THIN_STREET

from fgseg.data.streets import roadside
from fgseg.data.streets.canvas import Canvas, Light, View
from fgseg.data.streets.classes import FENCE
from fgseg.data.streets.scene import COMPLETE_EVERY
from fgseg.data.streets.scene import render as render_ids
from fgseg.labels import cityscapes_table, load_label_set, remap

LABEL = {c.key: c.label for c in CLASSES}
TABLE = cityscapes_table(THIN_STREET, "background")
SIZE = (128, 256)
NOON = Light((82, 138, 206), (204, 222, 234), (0.7, 0.7, 0.7), (0.5, 0.5, 0.5), 1, np.inf, 1e6, 0.0)


def render(*arguments: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene with the labels of the default label set."""
    image, ids = render_ids(*arguments)
    return image, remap(ids, TABLE)


def test_labels_of_the_default_set_are_those_of_the_first_release():
    digest = hashlib.sha256()
    for index in range(8):
        digest.update(render(9, index, *SIZE)[1].tobytes())
    assert digest.hexdigest() == "9097531b7c49f5b6b1aa82bd17c4bcec19884275b40c978c7b695a48050cf553"


def test_the_streets_set_has_every_class_that_is_drawn():
    classes = load_label_set("streets")
    ids = np.unique([render_ids(0, index, *SIZE)[1] for index in range(40)])
    assert set(ids.tolist()) == {0} | {i for c in classes.classes for i in c.ids}


def test_a_set_without_background_has_void_in_its_place():
    labels = remap(render_ids(0, 0, *SIZE)[1], cityscapes_table(load_label_set("cityscapes19"), "background"))
    assert {0, 1, 2, 10, 13, 255} <= set(np.unique(labels).tolist()) <= {*range(19), 255}


def test_the_same_seed_and_index_give_the_same_bytes_in_any_order():
    first = [render(3, index, *SIZE) for index in (1, 4)]
    again = [render(3, index, *SIZE) for index in (4, 1)][::-1]
    for (image, labels), (image_again, labels_again) in zip(first, again, strict=True):
        assert image.tobytes() == image_again.tobytes()
        assert labels.tobytes() == labels_again.tobytes()


@pytest.mark.parametrize("other", [(0, 6), (1, 5)])
def test_another_index_or_seed_is_another_scene(other):
    image, labels = render(0, 5, *SIZE)
    image_other, labels_other = render(*other, *SIZE)
    assert (image != image_other).mean() > 0.5
    assert (labels != labels_other).mean() > 0.05


@pytest.mark.parametrize("size", [(64, 128), (128, 256), (96, 96), (75, 201)])
def test_picture_and_labels_have_the_size_asked_for_and_only_known_labels(size):
    image, labels = render(0, 2, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert labels.shape == size and labels.dtype == np.uint8
    assert labels.max() <= 6


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_every_fourth_frame_shows_all_six_classes(seed):
    for index in [*range(0, 40, COMPLETE_EVERY), 1_000_000, 2_000_000]:
        counts = np.bincount(render(seed, index, *SIZE)[1].ravel(), minlength=7)
        assert min(counts[c.label] for c in FOREGROUND) >= 12, f"scene {index} of seed {seed}: {counts}"


def test_a_complete_frame_is_complete_at_other_sizes_too():
    for size in ((64, 128), (256, 512)):
        assert set(np.unique(render(0, 8, *size)[1])) == set(range(7))


def test_classes_take_shares_of_the_picture_as_in_a_street():
    counts = sum(np.bincount(render(7, index, *SIZE)[1].ravel(), minlength=7) for index in range(40))
    share = dict(zip(LABEL, counts / counts.sum(), strict=True))
    assert 0.65 < share["background"] < 0.85
    assert 0.07 < share["vegetation"] < 0.2 and 0.03 < share["car"] < 0.1
    for thin in ("fence", "pole", "traffic_sign", "traffic_light"):
        assert 0.003 < share[thin] < 0.04, thin


@pytest.mark.parametrize("index", range(8))
def test_twice_the_size_is_the_same_scene(index):
    image, labels = render(0, index, *SIZE)
    large_image, large_labels = render(0, index, 256, 512)
    nearest = np.asarray(Image.fromarray(large_labels).resize((256, 128), Image.Resampling.NEAREST))
    # Only the pixels along outlines may differ: they make up a few per cent of a picture of this size.
    assert (nearest == labels).mean() > 0.95
    smooth = np.asarray(Image.fromarray(large_image).reduce(2), dtype=float)
    assert np.abs(smooth - image).mean() < 8, "more than grain and outlines differ"


@pytest.mark.parametrize("style", roadside.FENCES)
def test_one_sees_what_lies_behind_a_fence_through_its_gaps(style):
    behind = ((255, 0, 0), (0, 0, 255))
    pictures, labels = zip(*(_fence_before(style, colour) for colour in behind), strict=True)
    fence = labels[0] == FENCE
    seen_through = (pictures[0] != pictures[1]).any(axis=2) & fence
    assert fence.sum() > 500 and np.array_equal(labels[0], labels[1])
    assert 0.2 < seen_through.sum() / fence.sum() < 0.99, "neither a wall nor nothing"


def _fence_before(style: str, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    canvas = Canvas(*SIZE, View(1.3, 0.5, 0.0, 1.6), NOON)
    canvas.polygon([(-99, -99, 50), (-99, 99, 50), (99, 99, 50), (99, -99, 50)], colour)
    roadside.draw_fence(canvas, (4.0, 6.0), (4.0, 18.0), style, 1.4)
    return canvas.finish(np.random.default_rng(0))


def test_what_is_nearer_hides_what_is_farther_in_the_labels_as_in_the_picture():
    canvas = Canvas(*SIZE, View(1.3, 0.5, 0.0, 1.6), NOON)
    for z, label, colour in ((20.0, 2, (255, 0, 0)), (10.0, 4, (0, 255, 0)), (5.0, 0, (0, 0, 255))):
        canvas.disc((0.0, 1.6, z), (1.0, 1.0), colour, label)
    image, labels = canvas.finish(np.random.default_rng(0))
    assert labels.max() == 0, "the nearest disc, of the background, covers both others"
    assert image[64, 128].argmax() == 2


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        render(0, -1, *SIZE)
