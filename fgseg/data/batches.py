"""Training and evaluation batches from the frames of a split; all randomness comes from one generator."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgseg.config.settings import RunConfig
from fgseg.data.augment import (
    ComponentSource,
    copy_paste,
    distort_colours,
    flip,
    paste_components,
    scale_and_crop,
)
from fgseg.data.class_sampling import rare_class_weights
from fgseg.data.device_frames import Frames
from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.labels import VOID


def train_batches(frames: Frames, run: RunConfig, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield as many training frames as there are, in random order, augmented.

    Every frame comes once, unless `data.rare_class_temperature` draws them with replacement.  In this order, frames are
    mirrored, receive objects, are scaled and cropped, and change their colours.

    Args:
        frames: the training split.
        run: batch size, and the sections `data`, `augment` and `copy_paste`.
        generator: on the device of the batches; the only source of randomness.

    Yields:
        images (B, 3, H, W) uint8 in [0, 255] and labels (B, H, W) uint8, of the size of the crop; the last batch may be
        smaller.
    """
    count, size, device = len(frames), run.train.batch_size, generator.device
    window, paste = run.data.window or frames.size, run.copy_paste
    foreground, excluded = run.label_set().foreground_labels, excluded_labels(run)
    # Drawn once per epoch: with the frames on the host, copying the indices is the only synchronisation with the GPU.
    order = draw_order(frames, run.data.rare_class_temperature, generator).to(frames.index_device)
    sources = torch.randint(count, (count,), generator=generator, device=device).to(frames.index_device)
    components = DrawnComponents.draw(frames, run, generator) if paste.needs_components else None
    for start in range(0, count, size):
        part = slice(start, start + size)
        images, labels = frames.batch(order[part])
        if run.augment.flip_prob > 0:
            images, labels = flip(images, labels, run.augment.flip_prob, generator)
        if components is not None:
            objects = components.sources(part)
            images, labels = paste_components(images, labels, objects, paste.components, paste.prob, generator)
        elif paste.prob > 0 and paste.mode == "frame":
            pasted, classes = frames.batch(sources[part])
            classes = hide(classes, excluded)
            images, labels = copy_paste(images, labels, pasted, classes, foreground, paste.prob, generator)
        if run.augment.scale > 1 or window != frames.size:
            images, labels = scale_and_crop(images, labels, run.augment.scale, window, generator)
        if run.augment.colour > 0:
            images = distort_colours(images, run.augment.colour, generator)
        yield images, labels


def hide(labels: Tensor, excluded: Iterable[int]) -> Tensor:
    """Replace the excluded labels (integers) in labels (B, H, W) uint8 by VOID."""
    for label in excluded:
        labels = labels.masked_fill(labels == label, VOID)
    return labels


def draw_order(frames: Frames, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw the frames of an epoch, (N,) int64 on the generator's device: a permutation, or by rare class sampling."""
    if temperature == 0:
        return torch.randperm(len(frames), generator=generator, device=generator.device)
    weights = rare_class_weights(frames.pixels, frames.size[0] * frames.size[1], temperature)
    probabilities = torch.from_numpy(weights).to(generator.device)
    return torch.multinomial(probabilities, len(frames), replacement=True, generator=generator)


def excluded_labels(run: RunConfig) -> list[int]:
    """Return the labels that `copy_paste.without` excludes."""
    return [c.label for c in run.label_set().foreground if c.key in run.copy_paste.excluded]


@dataclass(frozen=True)
class DrawnComponents:
    """The connected components that the frames of an epoch may receive, K for each of N frames."""

    frames: Frames
    index: Tensor
    """(N, K) int64 on `frames.index_device`: the frames that contain the components."""
    rows: Tensor
    """(N, K, 5) int64 on the device: rows of `Components.table`."""

    @classmethod
    def draw(cls, frames: Frames, run: RunConfig, generator: torch.Generator) -> "DrawnComponents | None":
        """Draw `copy_paste.components` components for each frame: a class uniformly, then one of its components.

        Returns:
            None if there is no component of a class that may be pasted.
        """
        assert frames.components is not None
        table, number = np.array(frames.components, np.int64), run.copy_paste.components
        of_label = np.bincount(table[~np.isin(table[:, 2], excluded_labels(run)), 2], minlength=VOID)
        if not of_label.any():
            return None
        weights = np.divide(1.0, of_label, out=np.zeros(len(of_label)), where=of_label > 0)[table[:, 2]]
        probabilities, rows = (torch.from_numpy(array).to(generator.device) for array in (weights, table))
        drawn = torch.multinomial(probabilities, len(frames) * number, replacement=True, generator=generator)
        chosen = rows[drawn].view(len(frames), number, -1)
        return cls(frames, chosen[..., 0].to(frames.index_device), chosen)

    def sources(self, part: slice) -> Iterator[ComponentSource]:
        """Yield the components of consecutive frames, K batches of one component per frame."""
        for index, rows in zip(self.index[part].unbind(1), self.rows[part].unbind(1), strict=True):
            _, number, label, left, right = rows.unbind(1)
            masks = self.frames.component_ids(index) == number[:, None, None]
            yield ComponentSource(self.frames.batch(index)[0], masks, label.to(torch.uint8), left, right)


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
