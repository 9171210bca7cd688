"""Overlays of a trained model's predictions on a few validation frames, the same ones for every trial."""

import re
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fgseg.data import FrameSet
from fgseg.labels import LabelSet
from fgseg.storage.store import Store
from fgseg.visual.label_images import encode_png, overlay, strip, to_width

if TYPE_CHECKING:
    from torch import nn

COUNT = 4
"""Frames of which overlays are saved."""
MAX_WIDTH_PX = 512
"""Maximum width of each of the three pictures of a file."""
NAME = re.compile(r"overlay-\d+-(.+\.png)")
UNSAFE = re.compile(r"[^\w.-]+")


def save_overlays(
    store: Store, model: "nn.Module", frames: FrameSet, classes: LabelSet, window: tuple[int, int] | None = None
) -> None:
    """Write one PNG per frame into a trial's store: photo, truth and prediction side by side.

    Args:
        store: of the trial.
        model: as for `fgseg.metrics.evaluator.evaluate`.
        frames: the validation split; COUNT of its frames are taken, evenly spaced.
        classes: the label set of the frames.
        window: as for `fgseg.metrics.evaluator.evaluate`.
    """
    import torch  # imported here because the driver, which needs no torch, imports this module

    from fgseg.metrics.evaluator import predict_labels

    index = np.linspace(0, len(frames) - 1, min(COUNT, len(frames))).round().astype(int)
    photos, truth = np.asarray(frames.images[index]), np.asarray(frames.labels[index])
    predicted = predict_labels(model, torch.from_numpy(photos).permute(0, 3, 1, 2), window).numpy()
    for number, (at, *arrays) in enumerate(zip(index, photos, truth, predicted, strict=True), 1):
        photo, real, found = to_width(MAX_WIDTH_PX, classes, *arrays)
        panels = [photo, *(overlay(photo // 2, labels, classes, 0.75) for labels in (real, found))]
        store.put(overlay_name(number, frames.names[at]), encode_png(strip(panels)))


def overlay_name(number: int, frame: str) -> str:
    """Return a file name: the number, and the frame's name with unsafe characters replaced by "_"."""
    return f"overlay-{number}-{UNSAFE.sub('_', frame)}.png"


def read_overlays(store: Store) -> dict[str, bytes]:
    """Read the overlays of a trial by frame name; empty if there are none."""
    return {match[1]: store.get(name) for name in store.list() if (match := NAME.fullmatch(name))}


def is_whole(png: bytes) -> bool:
    """Return whether a PNG file is complete and the checksums of all its chunks are right."""
    try:
        Image.open(BytesIO(png), formats=["PNG"]).verify()
    except Exception:  # Pillow raises many types for damaged files
        return False
    return png.endswith(b"\0\0\0\0IEND\xaeB`\x82")  # Pillow does not check the last chunk
