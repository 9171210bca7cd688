"""A model over a picture of any size: at the scale of its training, in overlapping tiles whose logits are blended."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgseg.data.batches import normalise
from fgseg.labels import NUM_CLASSES

STRIDE = 4
"""Pixels of a side for one logit of a SegFormer."""
OVERLAP = 0.25
"""Part of a tile, at least, that it shares with the next one."""
NEARLY = 0.02
"""A picture whose shape differs from that of the training frames by no more than this part is squeezed to it."""


def working_size(size: tuple[int, int], frame: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """The size at which a picture is looked at: its shape kept, and as small as covers a training frame.

    Args:
        size: height and width of the picture.
        frame: those of the training frames.
        scale: factor on top of it; 2 shows thin things twice as large as they were in training, in four times the work.

    Returns:
        Height and width: those of `frame` itself, or multiples of STRIDE.
    """
    ratio = scale * max(frame[0] / size[0], frame[1] / size[1])
    height, width = (side * ratio for side in size)
    if all(abs(side - limit) <= NEARLY * limit for side, limit in zip((height, width), frame, strict=True)):
        return frame
    return aligned(height), aligned(width)


def aligned(side: float) -> int:
    """The nearest multiple of STRIDE, and at least eight of it: less is nothing to a SegFormer."""
    return max(8, round(side / STRIDE)) * STRIDE


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side, evenly, so that they cover it and overlap; all are multiples of STRIDE."""
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / ((1 - OVERLAP) * tile)) + 1
    return [round((length - tile) * i / (count - 1) / STRIDE) * STRIDE for i in range(count)]


def window(height: int, width: int) -> Tensor:
    """The weight of each logit of a tile, (height, width) float32: highest in the middle, falling to its edges."""
    rows, columns = (torch.minimum(torch.arange(n) + 1, n - torch.arange(n)) / n for n in (height, width))
    return rows[:, None] * columns


@torch.inference_mode()
def tiled_logits(model: nn.Module, image: Tensor, frame: tuple[int, int], device: str = "cpu") -> Tensor:
    """Logits of a picture, in tiles of about the size of a training frame where it is larger.

    Args:
        model: gives an output with `.logits`, on `device`, in evaluation mode.
        image: (3, H, W) uint8 of a `working_size`.
        frame: height and width of the training frames.
        device: receives the tiles.

    Returns:
        (7, h, w) float32 on the CPU, which cover the picture; h and w are a quarter of H and W, rounded up.
    """
    size = (image.shape[1], image.shape[2])
    if size == frame:
        return logits_of(model, image, device)
    tile = [min(aligned(limit), side) for limit, side in zip(frame, size, strict=True)]
    total = torch.zeros(NUM_CLASSES, size[0] // STRIDE, size[1] // STRIDE)
    weights = torch.zeros_like(total[0])
    for top, left in itertools.product(starts(size[0], tile[0]), starts(size[1], tile[1])):
        logits = logits_of(model, image[:, top : top + tile[0], left : left + tile[1]], device)
        weight = window(logits.shape[1], logits.shape[2])
        rows = slice(top // STRIDE, top // STRIDE + logits.shape[1])
        columns = slice(left // STRIDE, left // STRIDE + logits.shape[2])
        total[:, rows, columns] += logits * weight
        weights[rows, columns] += weight
    return total / weights


def logits_of(model: nn.Module, image: Tensor, device: str) -> Tensor:
    """Logits (7, h, w) float32 on the CPU of one picture or tile (3, H, W) uint8."""
    logits: Tensor = model(pixel_values=normalise(image[None].to(device))).logits
    return logits[0].float().cpu()


def labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest logit at each pixel, class by class: all at once, large photos would fill the memory.

    Args:
        logits: (7, h, w) float32; resized bilinearly to `size` (align_corners=False).
        size: height and width in pixels.

    Returns:
        (H, W) uint8, 0-6; of equal logits the lower class.
    """
    best = torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8)
    for label, plane in enumerate(logits):
        wide = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        higher = wide > best
        labels[higher] = label
        best[higher] = wide[higher]
    return labels
