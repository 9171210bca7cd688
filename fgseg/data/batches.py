"""Training and evaluation batches from the frames of a split; all randomness comes from one generator."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fgseg.config.settings import RunConfig
from fgseg.data.augment import copy_paste, flip
from fgseg.data.device_frames import Frames
from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from fgseg.distributed import SINGLE_PROCESS, World


def train_batches(frames: Frames, run: RunConfig, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every training frame once, in random order, augmented.

    Args:
        frames: the training split.
        run: batch size, and the sections `augment` and `copy_paste`.
        generator: on the device of the batches; the only source of randomness.

    Yields:
        images (B, 3, H, W) uint8 in [0, 255] and labels (B, H, W) uint8; the last batch may be smaller.
    """
    count, size, device = len(frames), run.train.batch_size, generator.device
    foreground = run.label_set().foreground_labels
    # Drawn once per epoch: with the frames on the host, copying the indices is the only synchronisation with the GPU.
    order = torch.randperm(count, generator=generator, device=device).to(frames.index_device)
    sources = torch.randint(count, (count,), generator=generator, device=device).to(frames.index_device)
    for start in range(0, count, size):
        images, labels = frames.batch(order[start : start + size])
        if run.augment.flip_prob > 0:
            images, labels = flip(images, labels, run.augment.flip_prob, generator)
        if run.copy_paste.prob > 0:
            pasted = frames.batch(sources[start : start + size])
            images, labels = copy_paste(images, labels, *pasted, foreground, run.copy_paste.prob, generator)
        yield images, labels


def eval_batches(frames: Frames, batch_size: int, world: World = SINGLE_PROCESS) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's frames once, in order, without augmentation.

    Args:
        frames: the split.
        batch_size: frames per batch, at least 1.
        world: the processes that share the split; rank r takes the frames r, r + world_size, ...

    Yields:
        images (B, 3, H, W) uint8 in [0, 255] and labels (B, H, W) uint8; the last batch may be smaller.
    """
    own = torch.arange(len(frames), device=frames.index_device)[world.rank :: world.world_size]
    for start in range(0, len(own), batch_size):
        yield frames.batch(own[start : start + batch_size])


def normalise(images: Tensor) -> Tensor:
    """Normalise images (B, 3, H, W) uint8 to float32 with ImageNet's mean and standard deviation per channel."""
    # Python numbers, channel by channel: a tensor of means would be copied to the GPU in every step.
    planes = zip(images.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.stack([(plane / 255 - mean) / std for plane, mean, std in planes], 1)
