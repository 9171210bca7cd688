"""From cached frames to augmented batches, every random choice drawn from one generator."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fgseg.augment import copy_paste, flip
from fgseg.config import RunConfig
from fgseg.data import FrameSet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def train_batches(frames: FrameSet, run: RunConfig, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Every training frame once, in random order, augmented.

    Args:
        frames: the training split.
        run: batch size and augmentation.
        generator: on the device that receives the batches; the only source of randomness.

    Yields:
        images (B, 3, H, W) uint8 and labels (B, H, W) uint8; the last batch may be smaller.
    """
    device = generator.device
    order = torch.randperm(len(frames), generator=generator, device=device).cpu().numpy()
    for start in range(0, len(frames), run.train.batch_size):
        images, labels = gather(frames, order[start : start + run.train.batch_size], device)
        if run.augment.flip_prob > 0:
            images, labels = flip(images, labels, run.augment.flip_prob, generator)
        if run.copy_paste.prob > 0:
            sources = torch.randint(len(frames), (len(labels),), generator=generator, device=device).cpu().numpy()
            images, labels = copy_paste(
                images, labels, *gather(frames, sources, device), run.copy_paste.prob, generator
            )
        yield images, labels


def eval_batches(frames: FrameSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every frame once, in order and unaltered, in the form of `train_batches`."""
    for start in range(0, len(frames), batch_size):
        yield gather(frames, np.arange(start, min(start + batch_size, len(frames))), device)


def gather(frames: FrameSet, index: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """The frames at `index` (B,) as images (B, 3, H, W) uint8 and labels (B, H, W) uint8 on a device."""
    images = torch.from_numpy(np.asarray(frames.images[index])).to(device)
    labels = torch.from_numpy(np.asarray(frames.labels[index])).to(device)
    return images.permute(0, 3, 1, 2), labels


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 as the encoders were trained to see them: float32, ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return ((images / 255 - mean) / std).contiguous()
