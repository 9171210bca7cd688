"""Draw labels as pictures: in the class colours, over a photo, and the changes between two predictions."""

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from fgseg.labels import VOID, LabelSet

CHUNK_ROWS = 256
"""Rows of a photo that `overlay` blends at a time, which bounds its memory."""
GAP_PX = 6
"""Width of the white gap between pictures side by side."""
MENDED, BROKEN = (0, 98, 190), (222, 84, 0)
"""Colours of improved and worsened pixels: blue and vermilion, distinct in every kind of colour blindness."""
RIGHT, WRONG, UNJUDGED = (240, 240, 240), (176, 176, 176), (255, 255, 255)
"""Colours of pixels that are right in both predictions, wrong in both, and void."""


def colour(labels: np.ndarray, classes: LabelSet) -> np.ndarray:
    """Paint labels (H, W) uint8 in the class colours: (H, W, 3) uint8, void black."""
    return palette(classes)[labels]


def overlay(image: np.ndarray, labels: np.ndarray, classes: LabelSet, opacity: float = 0.5) -> np.ndarray:
    """Lay the class colours over a photo.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) uint8, a class or VOID; background and void leave the photo as it is.
        classes: the label set.
        opacity: of the classes that are not thin, in [0, 1]; thin ones are half as transparent, to remain visible.

    Returns:
        (H, W, 3) uint8.
    """
    strength, colours = np.zeros(256, np.float32), palette(classes)
    for c in classes.foreground:
        strength[c.label] = 1 - (1 - opacity) / 2 if c.thin else opacity
    laid = np.empty_like(image)
    for top in range(0, len(image), CHUNK_ROWS):  # float32 blends of a whole photo would take ten times its memory
        rows = slice(top, top + CHUNK_ROWS)
        weight = strength[labels[rows]][..., None]
        laid[rows] = (image[rows] * (1 - weight) + colours[labels[rows]] * weight).round()
    return laid


def changes(truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Draw where a second prediction improves or worsens the first one.

    Args:
        truth, before, after: (H, W) uint8 labels; void in `truth` is ignored.

    Returns:
        (H, W, 3) uint8 in MENDED, BROKEN, RIGHT (both right), WRONG (both wrong) and UNJUDGED.
    """
    was, now = before == truth, after == truth
    picture = np.empty((*truth.shape, 3), np.uint8)
    for where, painted in ((was & now, RIGHT), (~was & ~now, WRONG), (~was & now, MENDED), (was & ~now, BROKEN)):
        picture[where] = painted
    picture[truth == VOID] = UNJUDGED
    return picture


def shrink(labels: np.ndarray, factor: int, classes: LabelSet) -> np.ndarray:
    """Reduce a label image without losing thin objects.

    Args:
        labels: (H, W) uint8, a class or VOID.
        factor: side of the block that becomes one pixel, 1 or more; the remainder at the lower and right edge is cut.
        classes: the label set.

    Returns:
        (H // factor, W // factor) uint8: the most frequent label of each block; but a thin class that covers at least
        `factor / 2` of the block's pixels comes first, of several the more frequent one.
    """
    if factor == 1:
        return labels
    height, width = labels.shape[0] // factor, labels.shape[1] // factor
    blocks = labels[: height * factor, : width * factor].reshape(height, factor, width, factor)
    kinds = [c.label for c in classes.classes] + [VOID]
    counts = np.stack([(blocks == kind).sum((1, 3)) for kind in kinds])
    for c in classes.thin:
        seen = counts[c.label] * 2 >= factor
        counts[c.label][seen] += factor**2
    return np.array(kinds, np.uint8)[counts.argmax(0)]


def to_width(width: int, classes: LabelSet, photo: np.ndarray, *labels: np.ndarray) -> list[np.ndarray]:
    """Reduce a photo (H, W, 3) and label images (H, W) of a label set, all uint8, by the same factor.

    The results are at most `width` pixels wide and have at most `width * width / 2` pixels.
    """
    height, across = photo.shape[:2]
    factor = math.ceil(max(across / width, math.sqrt(height * across / (width * width / 2))))
    smaller = [shrink(image, factor, classes) for image in labels]
    size = photo.shape[1] // factor, photo.shape[0] // factor
    return [np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)), *smaller]


def strip(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Join pictures (h, w, 3) uint8 of equal height side by side, with white gaps."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def encode_png(picture: np.ndarray) -> bytes:
    """Encode a picture (h, w, 3) uint8 as a PNG file of at most 256 colours."""
    buffer = BytesIO()
    Image.fromarray(picture).quantize(256).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (h, w, 3) uint8 as a JPEG file without chroma subsampling."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def palette(classes: LabelSet) -> np.ndarray:
    """Return the colour of every label, (256, 3) uint8; black for values that are no label."""
    table = np.zeros((256, 3), np.uint8)
    for c in classes.classes:
        table[c.label] = c.colour
    return table
