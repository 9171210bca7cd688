"""Labels as pictures: in the class colours, over a photo, and what changed between two predictions."""

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from fgseg.labels import CLASSES, NUM_CLASSES, THIN, VOID

ROWS = 256
"""Rows of a photo that are painted at a time."""
GAP = 6
"""Pixels between pictures side by side."""
MENDED, BROKEN = (0, 98, 190), (222, 84, 0)
"""Colours of a change for the better and the worse: blue and vermilion, which no kind of colour blindness mixes up."""
RIGHT, WRONG, UNJUDGED = (240, 240, 240), (176, 176, 176), (255, 255, 255)
"""Colours of pixels that were and stay right, were and stay wrong, and are void."""


def colour(labels: np.ndarray) -> np.ndarray:
    """Paint labels (H, W) uint8 in the class colours: (H, W, 3) uint8, void black."""
    return PALETTE[labels]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lay the class colours over a photo.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) uint8, 0-6 or VOID; background and void leave the photo as it is.
        opacity: of cars and vegetation, in [0, 1]; the thin classes are half as transparent, to be seen at all.

    Returns:
        (H, W, 3) uint8.
    """
    strength = np.zeros(256, np.float32)
    strength[1:NUM_CLASSES] = opacity
    strength[[c.label for c in THIN]] = 1 - (1 - opacity) / 2
    laid = np.empty_like(image)
    for top in range(0, len(image), ROWS):  # the fractions of a whole photo would take ten times its memory
        rows = slice(top, top + ROWS)
        weight = strength[labels[rows]][..., None]
        laid[rows] = (image[rows] * (1 - weight) + PALETTE[labels[rows]] * weight).round()
    return laid


def changes(truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where a second prediction mended or broke the first one.

    Args:
        truth, before, after: (H, W) uint8 labels; void in `truth` is not judged.

    Returns:
        (H, W, 3) uint8 in MENDED, BROKEN, RIGHT (both right), WRONG (both wrong) and UNJUDGED.
    """
    was, now = before == truth, after == truth
    picture = np.empty((*truth.shape, 3), np.uint8)
    for where, painted in ((was & now, RIGHT), (~was & ~now, WRONG), (~was & now, MENDED), (was & ~now, BROKEN)):
        picture[where] = painted
    picture[truth == VOID] = UNJUDGED
    return picture


def shrink(labels: np.ndarray, factor: int) -> np.ndarray:
    """Make a label image smaller without losing what is thin.

    Args:
        labels: (H, W) uint8, 0-6 or VOID.
        factor: pixels of a side that become one, 1 or more; what is left over at the lower and right edge is cut off.

    Returns:
        (H // factor, W // factor) uint8: of each block the most frequent label, or a thin class that covers as much of
        it as a line of half a pixel's width would; the one with more pixels of several.
    """
    if factor == 1:
        return labels
    height, width = labels.shape[0] // factor, labels.shape[1] // factor
    blocks = labels[: height * factor, : width * factor].reshape(height, factor, width, factor)
    kinds = [c.label for c in CLASSES] + [VOID]
    counts = np.stack([(blocks == kind).sum((1, 3)) for kind in kinds])
    for c in THIN:
        seen = counts[c.label] * 2 >= factor
        counts[c.label][seen] += factor**2
    return np.array(kinds, np.uint8)[counts.argmax(0)]


def to_width(width: int, photo: np.ndarray, *labels: np.ndarray) -> list[np.ndarray]:
    """A photo (H, W, 3) and label images (H, W), all uint8, made smaller alike.

    None is wider than `width` afterwards, nor has more pixels than a picture of this width and half that height.
    """
    height, across = photo.shape[:2]
    factor = math.ceil(max(across / width, math.sqrt(height * across / (width * width / 2))))
    smaller = [shrink(image, factor) for image in labels]
    size = photo.shape[1] // factor, photo.shape[0] // factor
    return [np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)), *smaller]


def strip(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (h, w, 3) uint8 of one height side by side, a white gap between them."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def encode_png(picture: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 as a PNG file of at most 256 colours."""
    buffer = BytesIO()
    Image.fromarray(picture).quantize(256).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(picture: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 as a JPEG file, colours at full resolution."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def palette() -> np.ndarray:
    """(256, 3) uint8: the colour of every label, black where there is none."""
    table = np.zeros((256, 3), np.uint8)
    for c in CLASSES:
        table[c.label] = c.colour
    return table


PALETTE = palette()
