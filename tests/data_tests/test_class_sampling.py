"""Rare class sampling: the definition of DAFormer, and the epochs that it draws."""

import numpy as np
import pytest
import torch
from random_frames import resident, some_frames

from fgseg.data.batches import draw_order
from fgseg.data.class_sampling import MIN_SHARE, rare_class_weights

FRAME_PX = 512 * 1024


def test_probabilities_are_those_of_the_paper():
    pixels = np.array([[400_000, 3000, 0], [400_000, 2999, 5000], [400_000, 3000, 0]])
    totals = pixels.sum(0)
    of_class = np.exp((1 - totals / totals.sum()) / 0.5)
    of_class /= of_class.sum()
    expected = of_class @ np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5], [0, 1, 0]])
    assert rare_class_weights(pixels, FRAME_PX, 0.5) == pytest.approx(expected)


def test_number_of_pixels_scales_with_the_frame():
    assert MIN_SHARE * FRAME_PX == 3000
    pixels = np.array([[30_000, 188], [30_000, 187]])  # of 128x256: a sixteenth of the pixels
    assert rare_class_weights(pixels, 128 * 256, 0.001)[1] == pytest.approx(0, abs=1e-6)


def test_class_below_the_limit_everywhere_is_drawn_from_all_frames_that_contain_it():
    pixels = np.array([[30_000, 0], [30_000, 7], [30_000, 1]])
    assert rare_class_weights(pixels, FRAME_PX, 0.001) == pytest.approx([0, 0.5, 0.5])


def test_class_that_never_occurs_is_never_drawn_and_void_frames_are_drawn_uniformly():
    assert rare_class_weights(np.array([[5000, 0], [5000, 0]]), FRAME_PX, 0.01) == pytest.approx([0.5, 0.5])
    assert rare_class_weights(np.zeros((4, 3), int), FRAME_PX, 0.01) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 100])
def test_probabilities_are_finite_and_sum_to_one(temperature: float):
    pixels = np.random.default_rng(0).integers(0, 9000, (20, 7))
    weights = rare_class_weights(pixels, FRAME_PX, temperature)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)


def order(temperature: float, seed: int = 0) -> list[int]:
    frames = resident(some_frames(40))
    return draw_order(frames, temperature, torch.Generator().manual_seed(seed)).tolist()


def test_epoch_keeps_its_number_of_frames_and_repeats_some():
    assert sorted(order(0)) == list(range(40))
    drawn = order(0.01)
    assert len(drawn) == 40 and len(set(drawn)) < 40
    assert drawn == order(0.01) and drawn != order(0.01, seed=1)


def test_rare_class_is_drawn_more_often_the_lower_the_temperature():
    pixels = np.array([[30_000, 0]] * 9 + [[28_000, 2000]])
    shares = [rare_class_weights(pixels, 128 * 256, temperature)[-1] for temperature in (0.1, 1.0, 100.0)]
    assert shares[0] > 0.99 and shares == sorted(shares, reverse=True)
