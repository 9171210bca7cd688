"""Boundary IoU (Cheng et al., Boundary IoU, CVPR 2021): intersection over union of the masks' inner rims only.

Thin structures are nearly all rim, and of large ones the rim shows what the IoU of their interior hides.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.labels import NUM_CLASSES, VOID
from fgseg.metrics.iou import predicted_labels

WIDTH = 0.02
"""Width of the rim as a part of the image's diagonal, as in the paper."""


def boundary_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count, for each class of each image, the pixels of the rims of truth and prediction.

    The rim of a mask is what an erosion by `rim_width` pixels takes away; outside the image there is no mask, so a mask
    that reaches the image's edge has a rim there, as in the paper's own code. Void pixels are not counted. Nor do they
    make a rim: what lies there is unknown, so to the erosion they belong to every mask.

    Args:
        logits: (N, 7, h, w), any floating type; see `predicted_labels`.
        labels: (N, H, W) integers, 0-6 or VOID.

    Returns:
        (N, 7, 2) int64 on the logits' device: pixels in both rims, and pixels in either. Both are 0 where a class is
        absent from truth and prediction.
    """
    size = (labels.shape[-2], labels.shape[-1])
    void, width = labels == VOID, rim_width(*size)
    prediction, truth = predicted_labels(logits, size), labels
    counts = []
    for label in range(NUM_CLASSES):  # one class at a time: all at once would take 14 maps of the batch's size
        real, claimed = rim(truth == label, void, width), rim(prediction == label, void, width)
        counts.append(torch.stack([(real & claimed).sum((1, 2)), (real | claimed).sum((1, 2))], 1))
    return torch.stack(counts, 1)


def rim_width(height: int, width: int) -> int:
    """Width in pixels of the rims in an image of this size, at least one."""
    return max(1, round(WIDTH * math.hypot(height, width)))


def rim(mask: Tensor, void: Tensor, width: int) -> Tensor:
    """The pixels of a mask that lie within `width` pixels (diagonals count as one) of its outside.

    Args:
        mask: (N, H, W) bool.
        void: (N, H, W) bool; these pixels belong to no rim and to no outside.
        width: in pixels, 1 or more.

    Returns:
        (N, H, W) bool.
    """
    outside = F.pad((~mask & ~void).float(), (width, width, width, width), value=1.0)
    # A square of 2 width + 1 is a row of that length of columns of that length.
    rows = F.max_pool2d(outside[:, None], (2 * width + 1, 1), stride=1)
    near = F.max_pool2d(rows, (1, 2 * width + 1), stride=1)[:, 0] > 0
    return mask & near & ~void


def boundary_iou(counts: Tensor) -> Tensor:
    """Boundary IoU of each class.

    Args:
        counts: (..., 7, 2) as from `boundary_counts`, of one image or summed over many.

    Returns:
        (..., 7) float64 in [0, 1]; NaN for a class absent from truth and prediction.
    """
    both, either = counts.double().unbind(-1)
    return both / either
