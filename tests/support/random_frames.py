"""Frames for tests that need no data set."""

import numpy as np
import torch

from fgseg.data import FrameSet
from fgseg.data.components import find_components
from fgseg.data.device_frames import DeviceFrames, copy_to


def some_frames(count: int = 5, components: bool = False) -> FrameSet:
    """Random frames of 64x128, labels in blocks, some of them void."""
    rng = np.random.default_rng(0)
    blocks = rng.choice([0, 1, 2, 3, 4, 5, 6, 255], (count, 8, 16)).repeat(8, 1).repeat(8, 2)
    images = rng.integers(0, 256, (count, 64, 128, 3), np.uint8)
    labels = blocks.astype(np.uint8)
    pixels = np.stack([np.bincount(frame.ravel(), minlength=256)[:7] for frame in labels])
    found = find_components(labels, range(1, 7)) if components else None
    return FrameSet(images, labels, [f"{i}" for i in range(count)], "some", pixels, found)


def resident(frames: FrameSet) -> DeviceFrames:
    """What lies on a GPU in earnest."""
    return copy_to(torch.device("cpu"), frames)
