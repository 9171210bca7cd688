"""Logits of images that are larger than what a model is applied to at once: windows that overlap and are blended."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fgseg.data.geometry import STRIDE_PX

MIN_OVERLAP = 0.25
"""Share of a window's side, at least, in which it overlaps the next window."""


def window_starts(length: int, window: int) -> list[int]:
    """Return the first pixel of each window along a side, evenly spaced, in multiples of STRIDE_PX.

    Args:
        length: side of the image in pixels.
        window: side of a window in pixels.

    Returns:
        Starts in ascending order; the windows cover the side and overlap by at least about MIN_OVERLAP.
    """
    if length <= window:
        return [0]
    count = math.ceil((length - window) / ((1 - MIN_OVERLAP) * window)) + 1
    return [round((length - window) * i / (count - 1) / STRIDE_PX) * STRIDE_PX for i in range(count)]


def blend_weights(height: int, width: int, device: torch.device) -> Tensor:
    """Return the weight of each logit of a window, (height, width) float32 in (0, 1], which decreases to the edges."""
    steps = (torch.arange(n, device=device) for n in (height, width))
    rows, columns = (torch.minimum(i + 1, len(i) - i) / len(i) for i in steps)
    return rows[:, None] * columns


def sliding_logits(logits_of: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int]) -> Tensor:
    """Compute the logits of images in a window that slides over them, and average them where windows overlap.

    Args:
        logits_of: returns logits (B, C, h, w) of images (B, 3, H, W); h and w are H and W over STRIDE_PX, rounded up.
        images: (B, 3, H, W); sides that are larger than the window's are multiples of STRIDE_PX.
        window: height and width in pixels, multiples of STRIDE_PX where the images are larger.

    Returns:
        (B, C, h, w) on the device of the logits: exactly `logits_of(images)` where the window covers the images, else
        float32 means, weighted by `blend_weights`.
    """
    size = images.shape[-2:]
    if size[0] <= window[0] and size[1] <= window[1]:
        return logits_of(images)
    total = weights = torch.zeros(())
    for top, left in itertools.product(*map(window_starts, size, window)):
        logits = logits_of(images[..., top : top + window[0], left : left + window[1]])
        if total.dim() == 0:
            total = logits.new_zeros(*logits.shape[:2], *(-(-side // STRIDE_PX) for side in size), dtype=torch.float32)
            weights = torch.zeros_like(total[0, 0])
        weight = blend_weights(logits.shape[2], logits.shape[3], logits.device)
        rows = slice(top // STRIDE_PX, top // STRIDE_PX + logits.shape[2])
        columns = slice(left // STRIDE_PX, left // STRIDE_PX + logits.shape[3])
        total[..., rows, columns] += logits.float() * weight
        weights[rows, columns] += weight
    return total / weights
