"""Soft IoU: the Jaccard index of probabilities."""

from torch import Tensor


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
    intersection = (probs * target).sum((2, 3))
    union = probs.sum((2, 3)) + target.sum((2, 3)) - intersection
    return 1 - ((intersection + eps) / (union + eps)).mean()
