"""Pictures of labels: what they show, at any size and to any eye."""

from itertools import combinations

import numpy as np
import pytest
from thin_street import CLASSES, THIN_STREET

from fgseg.labels import VOID
from fgseg.visual.label_images import BROKEN, MENDED, RIGHT, UNJUDGED, WRONG, changes, colour, overlay, shrink

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(rgb: tuple[int, int, int], eye: str) -> np.ndarray:
    """A colour in CIE Lab (D65) as an eye sees it."""
    value = np.array(rgb) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(EYES[eye] @ linear, 0, 1) / (0.9505, 1, 1.089)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_class_colours_are_told_apart_by_every_eye(eye: str):
    pairs = combinations([lab(c.colour, eye) for c in CLASSES], 2)
    assert min(float(np.linalg.norm(a - b)) for a, b in pairs) > 25  # about 2 is the least that an eye notices


@pytest.mark.parametrize("eye", EYES)
def test_mended_and_broken_pixels_are_told_apart_from_each_other_and_the_rest(eye: str):
    seen = [lab(rgb, eye) for rgb in (MENDED, BROKEN, RIGHT, WRONG)]
    apart = [float(np.linalg.norm(seen[k] - other)) for k in (0, 1) for other in seen[k + 1 :]]
    assert min(apart) > 35


def test_labels_are_painted_in_their_colours_and_void_black():
    painted = colour(np.array([[1, VOID]], np.uint8), THIN_STREET)
    assert painted.tolist() == [[list(CLASSES[1].colour), [0, 0, 0]]]


def test_overlay_leaves_background_and_void_as_they_are():
    image = np.full((1, 2, 3), 200, np.uint8)
    assert (overlay(image, np.array([[0, VOID]], np.uint8), THIN_STREET) == image).all()


def test_overlay_mixes_photo_and_colour_by_the_opacity():
    image, labels = np.full((1, 1, 3), 200, np.uint8), np.array([[2]], np.uint8)
    assert overlay(image, labels, THIN_STREET, 0.5)[0, 0].tolist() == [110, 140, 205]
    assert overlay(image, labels, THIN_STREET, 1.0)[0, 0].tolist() == list(CLASSES[2].colour)


def test_overlay_shows_a_pole_more_strongly_than_a_car():
    image = np.zeros((1, 2, 3), np.uint8)
    car, pole = overlay(image, np.array([[2, 4]], np.uint8), THIN_STREET, 0.5)[0].astype(float)
    assert pole.max() / max(CLASSES[4].colour) == pytest.approx(0.75, abs=0.01)  # rounded to whole steps of colour
    assert car.max() / max(CLASSES[2].colour) == pytest.approx(0.5, abs=0.01)


def test_changes_tell_five_cases_apart():
    truth, before, after = (np.array([row], np.uint8) for row in ([1, 1, 1, 1, VOID], [1, 0, 0, 1, 1], [1, 0, 1, 0, 2]))
    assert changes(truth, before, after).tolist() == [[list(c) for c in (RIGHT, WRONG, MENDED, BROKEN, UNJUDGED)]]


def test_a_pole_of_one_pixel_survives_shrinking():
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 5] = 4
    assert (shrink(labels, 4, THIN_STREET)[:, 1] == 4).all()
    assert (shrink(labels, 4, THIN_STREET) == 4).sum() == 4


def test_shrinking_takes_the_commonest_label_elsewhere_and_cuts_the_rest_off():
    labels = np.array([[2, 2, 3, 3, 9], [2, 3, 3, VOID, 9], [9, 9, 9, 9, 9]], np.uint8)
    assert shrink(labels, 2, THIN_STREET).tolist() == [[2, 3]]


def test_shrinking_by_one_changes_nothing():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (shrink(labels, 1, THIN_STREET) == labels).all()
