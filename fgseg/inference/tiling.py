"""Inference on images of any size: at the scale of training, in overlapping tiles whose logits are blended."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgseg.data.batches import normalise

STRIDE_PX = 4
"""Side of the square of pixels for which a SegFormer computes one logit."""
MIN_STRIDES = 8
"""Side of an image in strides, at least: the deepest stage of a SegFormer has a stride of 32 pixels."""
MIN_OVERLAP = 0.25
"""Share of a tile's side, at least, in which it overlaps the next tile."""
MAX_ASPECT_ERROR = 0.02
"""Relative difference, at most, for which an image is resized to exactly the size of the training frames."""


def working_size(size: tuple[int, int], frame: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Return the size to which an image is resized for inference: its aspect ratio, just covering a training frame.

    Args:
        size: height and width of the image in pixels.
        frame: height and width of the training frames in pixels.
        scale: additional factor; 2 makes objects twice as large as in training and takes four times the work.

    Returns:
        Height and width in pixels: `frame`, or multiples of STRIDE_PX.
    """
    ratio = scale * max(frame[0] / size[0], frame[1] / size[1])
    height, width = (side * ratio for side in size)
    if all(abs(side - limit) <= MAX_ASPECT_ERROR * limit for side, limit in zip((height, width), frame, strict=True)):
        return frame
    return round_to_stride(height), round_to_stride(width)


def round_to_stride(side: float) -> int:
    """Round a side in pixels to a multiple of STRIDE_PX, at least MIN_STRIDES of them."""
    return max(MIN_STRIDES, round(side / STRIDE_PX)) * STRIDE_PX


def tile_starts(length: int, tile: int) -> list[int]:
    """Return the first pixel of each tile along a side, evenly spaced, in multiples of STRIDE_PX.

    Args:
        length: side of the image in pixels.
        tile: side of a tile in pixels.

    Returns:
        Starts in ascending order; the tiles cover the side and overlap by at least about MIN_OVERLAP.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / ((1 - MIN_OVERLAP) * tile)) + 1
    return [round((length - tile) * i / (count - 1) / STRIDE_PX) * STRIDE_PX for i in range(count)]


def blend_weights(height: int, width: int) -> Tensor:
    """Return the weight of each logit of a tile, (height, width) float32 in (0, 1], which decreases to the edges."""
    rows, columns = (torch.minimum(torch.arange(n) + 1, n - torch.arange(n)) / n for n in (height, width))
    return rows[:, None] * columns


@torch.inference_mode()
def tiled_logits(model: nn.Module, image: Tensor, frame: tuple[int, int], device: str = "cpu") -> Tensor:
    """Compute the logits of an image, in tiles of about the size of a training frame if it is larger.

    Args:
        model: returns an output with `.logits`; on `device`, in evaluation mode.
        image: (3, H, W) uint8 in [0, 255], of a `working_size`.
        frame: height and width of the training frames in pixels.
        device: device of the model, such as `cuda:0`.

    Returns:
        (C, h, w) float32 on the CPU; h and w are a quarter of H and W, rounded up.
    """
    size = (image.shape[1], image.shape[2])
    if size == frame:
        return logits_of(model, image, device)
    tile = [min(round_to_stride(limit), side) for limit, side in zip(frame, size, strict=True)]
    corners = list(itertools.product(tile_starts(size[0], tile[0]), tile_starts(size[1], tile[1])))
    tiles = [logits_of(model, image[:, top : top + tile[0], left : left + tile[1]], device) for top, left in corners]
    total = torch.zeros(len(tiles[0]), size[0] // STRIDE_PX, size[1] // STRIDE_PX)
    weights = torch.zeros_like(total[0])
    for (top, left), logits in zip(corners, tiles, strict=True):
        weight = blend_weights(logits.shape[1], logits.shape[2])
        rows = slice(top // STRIDE_PX, top // STRIDE_PX + logits.shape[1])
        columns = slice(left // STRIDE_PX, left // STRIDE_PX + logits.shape[2])
        total[:, rows, columns] += logits * weight
        weights[rows, columns] += weight
    return total / weights


def logits_of(model: nn.Module, image: Tensor, device: str) -> Tensor:
    """Compute the logits (C, h, w) float32 of one image or tile (3, H, W) uint8; returns them on the CPU."""
    logits: Tensor = model(pixel_values=normalise(image[None].to(device))).logits
    return logits[0].float().cpu()


def labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the highest logit at each pixel, with memory for one class at a time.

    Args:
        logits: (C, h, w) float32 on the CPU; resized bilinearly to `size` (align_corners=False).
        size: height and width in pixels.

    Returns:
        (H, W) uint8, 0 to C - 1; the lowest class among equal logits.
    """
    best = torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8)
    for label, plane in enumerate(logits):
        wide = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        higher = wide > best
        labels[higher] = label
        best[higher] = wide[higher]
    return labels
