"""What a trained model sees, for people: a few validation frames, always the same ones, beside their labels."""

import re
from typing import TYPE_CHECKING

import numpy as np

from fgseg.data import FrameSet
from fgseg.storage.store import Store
from fgseg.visual.label_images import encode_png, overlay, strip, to_width

if TYPE_CHECKING:
    from torch import nn

COUNT = 4
WIDTH = 512
"""Pixels of each of the three pictures of a file at most."""
NAME = re.compile(r"overlay-\d+-(.+\.png)")
UNSAFE = re.compile(r"[^\w.-]+")


def save_overlays(store: Store, model: "nn.Module", frames: FrameSet) -> None:
    """Write one PNG per frame into a trial's folder: photo, truth and prediction side by side.

    Args:
        store: of the trial.
        model: as for `fgseg.metrics.evaluator.evaluate`.
        frames: the validation split; COUNT of its frames are taken, evenly spaced.
    """
    import torch  # only here: the driver reads the files' names

    from fgseg.metrics.evaluator import predict_labels

    index = np.linspace(0, len(frames) - 1, min(COUNT, len(frames))).round().astype(int)
    photos, truth = np.asarray(frames.images[index]), np.asarray(frames.labels[index])
    predicted = predict_labels(model, torch.from_numpy(photos).permute(0, 3, 1, 2)).numpy()
    for number, (at, *arrays) in enumerate(zip(index, photos, truth, predicted, strict=True), 1):
        photo, real, found = to_width(WIDTH, *arrays)
        panels = [photo, *(overlay(photo // 2, labels, 0.75) for labels in (real, found))]
        store.put(overlay_name(number, frames.names[at]), encode_png(strip(panels)))


def overlay_name(number: int, frame: str) -> str:
    """The name of a file: a number, and the frame's name as far as a file can have it."""
    return f"overlay-{number}-{UNSAFE.sub('_', frame)}.png"


def read_overlays(store: Store) -> dict[str, bytes]:
    """The pictures of a trial's folder by the name of their frame; empty where there are none."""
    return {match[1]: store.get(name) for name in store.list() if (match := NAME.fullmatch(name))}


def is_whole(png: bytes) -> bool:
    """Whether a PNG file begins and ends as one."""
    return png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
