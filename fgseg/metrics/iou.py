"""Confusion counts per image from logits; IoU per class and mIoU from counts."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.labels import FOREGROUND, NUM_CLASSES, VOID


def predicted_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the highest logit at each pixel.

    Args:
        logits: (N, 7, h, w), any floating type; resized bilinearly to `size` first (align_corners=False).
        size: height and width in pixels.

    Returns:
        (N, H, W) int64 labels, 0-6.
    """
    logits = logits.float()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    # torch's argmax over this dimension takes six times as long on the CPU.
    return logits.max(1).indices


def confusion_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the pixels of each image by true and predicted class.

    Args:
        logits: (N, 7, h, w), any floating type; see `predicted_labels`.
        labels: (N, H, W) integers, 0-6 or VOID. Void pixels are left out.

    Returns:
        (N, 7, 7) int64, rows truth, columns prediction. The sum over images is the confusion matrix of the batch.
    """
    truth = labels.long()
    prediction = predicted_labels(logits, (labels.shape[-2], labels.shape[-1]))
    cells = NUM_CLASSES**2
    images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    cell = images * cells + truth * NUM_CLASSES + prediction
    void_cell = len(labels) * cells
    counts = torch.bincount(torch.where(truth == VOID, void_cell, cell).flatten(), minlength=void_cell + 1)
    return counts[:void_cell].view(-1, NUM_CLASSES, NUM_CLASSES)


def iou_from_confusion(confusion: Tensor) -> Tensor:
    """Compute the intersection over union of each class.

    Args:
        confusion: (..., 7, 7) counts, rows truth, columns prediction.

    Returns:
        (..., 7) float64 in [0, 1]; NaN for a class absent from truth and prediction.
    """
    counts = confusion.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    return hits / (counts.sum(-1) + counts.sum(-2) - hits)


def class_iou(confusion: Tensor) -> dict[str, float]:
    """Return the IoU of the six foreground classes by key, from one (7, 7) confusion matrix.

    Values are in [0, 1], or NaN for a class absent from truth and prediction.
    """
    iou = iou_from_confusion(confusion).tolist()
    return {c.key: iou[c.label] for c in FOREGROUND}


def miou(iou: Mapping[str, float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if all are.

    Of the six values of `class_iou` this is the source's mIoU, which excludes the background.
    """
    present = [value for value in iou.values() if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
