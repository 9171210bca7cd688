"""Soft IoU: the Jaccard index of probabilities."""

import torch
from torch import Tensor

from fgseg.distributed import SINGLE_PROCESS, World


def soft_iou(probs: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """One minus the soft Jaccard index, averaged over images and classes.

    Args:
        probs: (N, C, H, W) float32 in [0, 1]; zero where the pixel is void.
        target: (N, C, H, W) float32 one-hot; zero where the pixel is void.
        eps: added to intersection and union; an absent class with zero probability then has index 1.

    Returns:
        () float32 in [0, 1]. Zero when every pixel is void.

    Classes absent from an image count too, as in the source; their index is near zero as soon as the model gives them
    any probability. Source: seed, approach 1, term 2.
    """
    intersection, union = overlaps(probs, target)
    return 1 - ((intersection + eps) / (union + eps)).mean()


def soft_iou_of_present(probs: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Jaccard index, averaged over the classes present in an image, then over the images.

    Args:
        probs: (N, C, H, W) float32 in [0, 1]; zero where the pixel is void.
        target: (N, C, H, W) float32 one-hot; zero where the pixel is void.

    Returns:
        () float32 in [0, 1].  An image of void pixels only adds 0.

    Source: Wang, Ning and Blaschko, "Jaccard Metric Losses", NeurIPS 2023 (arXiv 2303.16296).
    """
    return mean_of_present(*overlaps(probs, target), target.sum((2, 3)) > 0).mean()


def soft_iou_of_batch(probs: Tensor, target: Tensor, world: World = SINGLE_PROCESS) -> Tensor:
    """One minus the soft Jaccard index of the batch, averaged over the classes present in the batch.

    The pixels of all images of a batch are one set.

    Args:
        probs: (N, C, H, W) float32 in [0, 1]; zero where the pixel is void.
        target: (N, C, H, W) float32 one-hot; zero where the pixel is void.
        world: the processes that share the batch.

    Returns:
        () float32 in [0, 1].  Zero when every pixel is void.  With several processes, this process's summand of the
        loss of the whole batch: their sum is that loss, and each has its gradient by the process's own `probs`.

    Source: as for `soft_iou_of_present`.
    """
    own = torch.stack([part.sum(0) for part in (*overlaps(probs, target), target.sum((2, 3)))])
    # The sum over the processes, with the gradient of this process's part.
    intersection, union, count = world.all_reduce(own.detach()) + (own - own.detach())
    loss = mean_of_present(intersection, union, count > 0)
    return loss.detach() / world.world_size + (loss - loss.detach())


def overlaps(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return soft intersection and union of each image and class, (N, C) each, of two maps (N, C, H, W)."""
    intersection = (probs * target).sum((2, 3))
    return intersection, probs.sum((2, 3)) + target.sum((2, 3)) - intersection


def mean_of_present(intersection: Tensor, union: Tensor, is_present: Tensor) -> Tensor:
    """Return one minus the Jaccard index, averaged over the last dimension where `is_present`; 0 where nowhere."""
    losses = torch.where(is_present, 1 - intersection / torch.where(is_present, union, 1.0), 0.0)
    return losses.sum(-1) / is_present.sum(-1).clamp(min=1)
