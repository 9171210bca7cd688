"""Draw a picture of a data set with its labels, so that a wrong table of ids is noticed before a long run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fgseg.config.settings import DataConfig
from fgseg.data import FrameSet, fingerprint
from fgseg.data.cache import cache_folder
from fgseg.labels import LabelSet
from fgseg.visual.label_images import overlay, strip, to_width

SHOWN_FRAMES = 4
"""Frames in the picture."""
FRAME_WIDTH_PX = 512
"""Maximum width of a frame in the picture."""
LEGEND_HEIGHT_PX = 18


def save_picture(cfg: DataConfig, splits: Mapping[str, FrameSet]) -> Path:
    """Write the training frames with the most classes, beside themselves with labels, and a legend.

    Returns:
        The PNG file, in the cache of frames.
    """
    classes, frames = cfg.label_set(), splits["train"]
    number = (frames.pixels > 0).sum(1)
    chosen = np.sort(np.argsort(-number, kind="stable")[:SHOWN_FRAMES])
    rows = []
    for image, labels in zip(frames.images[chosen], frames.labels[chosen], strict=True):
        photo, small = to_width(FRAME_WIDTH_PX, classes, image, labels)
        rows.append(strip([photo, overlay(photo // 2, small, classes, 0.75)]))
    path = cache_folder(cfg) / "pictures" / f"{fingerprint(splits)[:12]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([*rows, legend(classes, rows[0].shape[1])])).save(path)
    return path


def legend(classes: LabelSet, width: int) -> np.ndarray:
    """Draw the name of each foreground class on its colour, (h, width, 3) uint8, in as many lines as needed."""
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, left, line = [], 0, 0
    for c in classes.foreground:
        wide = round(probe.textlength(c.name)) + 12
        if left + wide > width:
            left, line = 0, line + 1
        places.append((c, left, line * LEGEND_HEIGHT_PX, wide))
        left += wide
    picture = Image.new("RGB", (width, (line + 1) * LEGEND_HEIGHT_PX), "white")
    draw = ImageDraw.Draw(picture)
    for c, x, y, wide in places:
        draw.rectangle((x, y, x + wide, y + LEGEND_HEIGHT_PX), fill=tuple(c.colour))
        draw.text((x + 6, y + 3), c.name, fill="white" if sum(c.colour) < 384 else "black")
    return np.asarray(picture)
