"""Draw procedural street scenes above their labels: python scripts/draw_streets.py OUT.png [INDEX ...]"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fgseg.data.streets.scene import render
from fgseg.labels import cityscapes_table, load_label_set, remap
from fgseg.visual.label_images import colour

EXAMPLES = (28, 32, 44)
"""Indices of the scenes that are drawn by default."""
GAP = 8
"""Pixels between two images."""


def tile(index: int, height: int = 256) -> np.ndarray:
    """Draw a scene, and below it the scene blended with its labels: (2 * height + GAP, 2 * height, 3) uint8."""
    image, ids = render(0, index, 2 * height, 4 * height)
    classes = load_label_set("thin_street")
    labels = remap(ids, cityscapes_table(classes, "background"))
    blended = np.where(labels[..., None] > 0, 0.25 * image + 0.75 * colour(labels, classes), 0.45 * image).astype(
        np.uint8
    )
    small = [
        np.asarray(Image.fromarray(a).resize((2 * height, height), Image.Resampling.LANCZOS)) for a in (image, blended)
    ]
    return np.concatenate([small[0], np.full((GAP, 2 * height, 3), 255, np.uint8), small[1]])


def draw_streets(indices: Sequence[int] = EXAMPLES) -> Image.Image:
    """Draw scenes side by side."""
    tiles = [tile(index) for index in indices]
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([part for t in tiles for part in (t, gap)][:-1], axis=1))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    picture = draw_streets([int(text) for text in sys.argv[2:]] or EXAMPLES)
    picture.quantize(256).save(Path(sys.argv[1]), optimize=True)
