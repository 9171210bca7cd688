"""From frames to augmented batches, every random choice drawn from one generator."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fgseg.config.settings import RunConfig
from fgseg.data.augment import copy_paste, flip
from fgseg.data.device_frames import Frames
from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from fgseg.distributed import SINGLE_PROCESS, World


def train_batches(frames: Frames, run: RunConfig, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Every training frame once, in random order, augmented.

    Args:
        frames: the training split.
        run: batch size and augmentation.
        generator: on the device that receives the batches; the only source of randomness.

    Yields:
        images (B, 3, H, W) uint8 and labels (B, H, W) uint8; the last batch may be smaller.
    """
    count, size, device = len(frames), run.train.batch_size, generator.device
    # Drawn for the whole epoch at once: where the frames are on the host, this is the only wait for the device.
    order = torch.randperm(count, generator=generator, device=device).to(frames.index_device)
    sources = torch.randint(count, (count,), generator=generator, device=device).to(frames.index_device)
    for start in range(0, count, size):
        images, labels = frames.batch(order[start : start + size])
        if run.augment.flip_prob > 0:
            images, labels = flip(images, labels, run.augment.flip_prob, generator)
        if run.copy_paste.prob > 0:
            pasted = frames.batch(sources[start : start + size])
            images, labels = copy_paste(images, labels, *pasted, run.copy_paste.prob, generator)
        yield images, labels


def eval_batches(frames: Frames, batch_size: int, world: World = SINGLE_PROCESS) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's frames once, in order and unaltered, in the form of `train_batches`; together they are all."""
    own = torch.arange(len(frames), device=frames.index_device)[world.rank :: world.world_size]
    for start in range(0, len(own), batch_size):
        yield frames.batch(own[start : start + batch_size])


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 as the encoders were trained to see them: float32, ImageNet's mean and deviation."""
    # Plain numbers channel by channel: a tensor of means would be copied to the GPU in every step.
    planes = zip(images.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(plane / 255 - mean) / std for plane, mean, std in planes], 1)
