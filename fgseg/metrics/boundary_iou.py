"""Boundary IoU (Cheng et al., Boundary IoU, CVPR 2021): intersection over union of the inner rims of two masks.

The IoU of a large object hardly depends on its contour; its boundary IoU does.  Thin objects consist of rim only.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.labels import VOID, LabelSet
from fgseg.metrics.iou import predicted_labels

RIM_SHARE = 0.02
"""Width of the rim divided by the diagonal of the image; the value of the paper."""


def boundary_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rim pixels of truth and prediction for each class of each image.

    The rim of a mask is the set of pixels that an erosion by `rim_width` pixels removes. A mask that reaches the edge
    of the image has a rim there, as in the paper's code. Void pixels are not counted, and a mask has no rim towards
    them: for the erosion they belong to every mask.

    Args:
        logits: (N, C, h, w), any floating type; see `predicted_labels`.
        labels: (N, H, W) integers, 0 to C - 1 or VOID.

    Returns:
        (N, C, 2) int64 on the logits' device: pixels in both rims, and pixels in at least one of them. Both are 0 for a
        class absent from truth and prediction.
    """
    size = (labels.shape[-2], labels.shape[-1])
    void, width = labels == VOID, rim_width(*size)
    prediction, truth = predicted_labels(logits, size), labels
    counts = []
    for label in range(logits.shape[1]):  # class by class: all at once would need 2 C maps of the batch's size
        true_rim, predicted_rim = rim(truth == label, void, width), rim(prediction == label, void, width)
        both, either = true_rim & predicted_rim, true_rim | predicted_rim
        counts.append(torch.stack([both.sum((1, 2)), either.sum((1, 2))], 1))
    return torch.stack(counts, 1)


def rim_width(height: int, width: int) -> int:
    """Return the width of the rims in pixels, at least 1, in an image of height x width pixels."""
    return max(1, round(RIM_SHARE * math.hypot(height, width)))


def rim(mask: Tensor, void: Tensor, width: int) -> Tensor:
    """Return the pixels of a mask within `width` pixels (Chebyshev distance) of a pixel outside the mask.

    Args:
        mask: (N, H, W) bool.
        void: (N, H, W) bool; these pixels are neither in the rim nor outside the mask.
        width: in pixels, 1 or more.

    Returns:
        (N, H, W) bool.
    """
    outside = F.pad((~mask & ~void).float(), (width, width, width, width), value=1.0)
    # The maximum over a square window is the maximum over columns, then over rows.
    rows = F.max_pool2d(outside[:, None], (2 * width + 1, 1), stride=1)
    near = F.max_pool2d(rows, (1, 2 * width + 1), stride=1)[:, 0] > 0
    return mask & near & ~void


def class_boundary_iou(counts: Tensor, iou: Mapping[str, float], classes: LabelSet) -> dict[str, float]:
    """Compute the boundary IoU of the foreground classes.

    Args:
        counts: (C, 2) integers from `boundary_counts`, summed over images.
        iou: IoU by class key, NaN for a class that does not occur in the truth, which has no boundary IoU either.
        classes: the label set of the C classes.

    Returns:
        Values in [0, 1], or NaN, by class key.
    """
    rims = boundary_iou(counts).tolist()
    return {c.key: math.nan if math.isnan(iou[c.key]) else rims[c.label] for c in classes.foreground}


def boundary_iou(counts: Tensor) -> Tensor:
    """Compute the boundary IoU of each class.

    Args:
        counts: (..., C, 2) integers from `boundary_counts`, of one image or summed over several.

    Returns:
        (..., C) float64 in [0, 1]; NaN for a class absent from truth and prediction.
    """
    both, either = counts.double().unbind(-1)
    return both / either
