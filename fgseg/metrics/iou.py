"""Confusion counts per image from logits; IoU per class and mIoU from counts."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.labels import VOID, LabelSet
from fgseg.results import mean_iou


def predicted_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the highest logit at each pixel.

    Args:
        logits: (N, C, h, w), any floating type; resized bilinearly to `size` first (align_corners=False).
        size: height and width in pixels.

    Returns:
        (N, H, W) int64 labels, 0 to C - 1.
    """
    logits = logits.float()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    # torch's argmax over this dimension takes six times as long on the CPU.
    return logits.max(1).indices


def confusion_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the pixels of each image by true and predicted class.

    Args:
        logits: (N, C, h, w), any floating type; see `predicted_labels`.
        labels: (N, H, W) integers, 0 to C - 1 or VOID. Void pixels are left out.

    Returns:
        (N, C, C) int64, rows truth, columns prediction. The sum over images is the confusion matrix of the batch.
    """
    truth, classes = labels.long(), logits.shape[1]
    prediction = predicted_labels(logits, (labels.shape[-2], labels.shape[-1]))
    cells = classes**2
    images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    cell = images * cells + truth * classes + prediction
    void_cell = len(labels) * cells
    counts = torch.bincount(torch.where(truth == VOID, void_cell, cell).flatten(), minlength=void_cell + 1)
    return counts[:void_cell].view(-1, classes, classes)


def iou_from_confusion(confusion: Tensor) -> Tensor:
    """Compute the intersection over union of each class.

    Args:
        confusion: (..., C, C) counts, rows truth, columns prediction.

    Returns:
        (..., C) float64 in [0, 1]; NaN for a class absent from truth and prediction.
    """
    counts = confusion.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    return hits / (counts.sum(-1) + counts.sum(-2) - hits)


def class_iou(confusion: Tensor, classes: LabelSet) -> dict[str, float]:
    """Return the IoU of the foreground classes by key, from one (C, C) confusion matrix of a whole split.

    Values are in [0, 1], or NaN for a class that does not occur in the truth, whose predictions cannot be right.
    """
    iou, occurs = iou_from_confusion(confusion).tolist(), (confusion.sum(-1) > 0).tolist()
    return {c.key: iou[c.label] if occurs[c.label] else math.nan for c in classes.foreground}


def miou(iou: Mapping[str, float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if all are.

    Of the values of `class_iou` this is the source's mIoU, which excludes the background.
    """
    return mean_iou(iou.values())
