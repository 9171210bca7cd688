"""Rare class sampling: how often each training frame is drawn, from its pixels per class."""

import math

import numpy as np

MIN_SHARE = 3000 / (512 * 1024)
"""Share of a frame's pixels, at least, that a class has in a frame drawn for it: 3,000 pixels of 512x1024 in DAFormer,
188 of 128x256."""


def rare_class_weights(pixels: np.ndarray, frame_pixels: int, temperature: float) -> np.ndarray:
    """Return the probability of each frame when a class is drawn first, and then one of the frames with this class.

    With f_c the share of class c in all labelled pixels, class c is drawn with probability softmax((1 - f_c) / T),
    among the classes that occur.  A frame is then drawn uniformly from those in which at least MIN_SHARE of the pixels
    are of class c; if there is none, from all that contain class c.

    Args:
        pixels: (N, C) integers, pixels of each class in each frame.
        frame_pixels: pixels of a frame, with its void ones.
        temperature: T, above 0.

    Returns:
        (N,) float64, sum 1; uniform if no pixel is labelled.

    Source: Hoyer, Dai and Van Gool, "DAFormer", CVPR 2022 (rare class sampling).
    """
    totals = pixels.sum(0)
    occurs = totals > 0
    if not occurs.any():
        return np.full(len(pixels), 1 / len(pixels))
    logits = np.where(occurs, (1 - totals / totals.sum()) / temperature, -np.inf)
    of_class = np.exp(logits - logits.max())
    of_class /= of_class.sum()
    enough = pixels >= math.ceil(MIN_SHARE * frame_pixels)
    eligible = np.where(enough.any(0), enough, pixels > 0)
    return np.asarray(eligible / np.maximum(eligible.sum(0), 1) @ of_class)
