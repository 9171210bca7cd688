"""What a trained model sees, for people: a few validation frames, always the same ones, beside their labels."""

import numpy as np
import torch
from torch import nn

from fgseg.data import FrameSet
from fgseg.figures import encode_png, overlay, strip, to_width
from fgseg.metrics.evaluator import predict_frames
from fgseg.overlay_files import overlay_name
from fgseg.storage.store import Store

COUNT = 4
WIDTH = 512
"""Pixels of each of the three pictures of a file at most."""


def put_overlays(store: Store, model: nn.Module, frames: FrameSet) -> None:
    """Write one PNG per frame into a trial's folder: photo, truth and prediction side by side.

    Args:
        store: of the trial.
        model: as for `fgseg.metrics.evaluator.evaluate`.
        frames: the validation split; COUNT of its frames are taken, evenly spaced.
    """
    index = np.linspace(0, len(frames) - 1, min(COUNT, len(frames))).round().astype(int)
    photos, truth = np.asarray(frames.images[index]), np.asarray(frames.labels[index])
    predicted = predict_frames(model, torch.from_numpy(photos).permute(0, 3, 1, 2)).numpy()
    for number, (at, *arrays) in enumerate(zip(index, photos, truth, predicted, strict=True), 1):
        photo, real, found = to_width(WIDTH, *arrays)
        panels = [photo, *(overlay(photo // 2, labels, 0.75) for labels in (real, found))]
        store.put(overlay_name(number, frames.names[at]), encode_png(strip(panels)))
