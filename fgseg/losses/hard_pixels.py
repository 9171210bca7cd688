"""Cross-entropy over the hard pixels of a batch: online hard example mining."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.labels import VOID

MIN_SHARE = 16
"""One in this many of a batch's pixels is always kept, the hardest ones, as in common segmentation code."""


def hard_pixel_cross_entropy(
    log_probs: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    threshold: Tensor,
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """Return the class-weighted mean cross-entropy, sum(w * l) / sum(w), over the hard pixels.

    A pixel is hard if the probability of its true class is below the threshold, or if it is among the 1/16 of the
    batch's pixels, rounded up, with the lowest such probabilities (ties included).  Void pixels are never hard.

    Args:
        log_probs: (N, C, H, W) float32, the logits' log-softmax.
        labels: (N, H, W) uint8 or int64, 0..C-1 or VOID.
        class_weights: (C,) float32, not negative; None means 1 for every class.
        threshold: () float32 in (0, 1].
        world: the processes that share the batch, N frames each; the hardest 1/16 are those of the whole batch.

    Returns:
        () float32, not negative.  With several processes, this process's summand of the mean over the whole batch.
        Zero, with zero gradient, when every pixel is void.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016;
    for segmentation with a threshold of 0.7 and at least 1/16 of the pixels: Yuan et al., "Object-Contextual
    Representations for Semantic Segmentation", ECCV 2020, and the samplers of mmsegmentation.
    """
    losses = F.nll_loss(log_probs, labels.long(), ignore_index=VOID, reduction="none")
    weights = hard_pixels(losses, labels != VOID, threshold, world).to(losses.dtype)
    if class_weights is not None:
        weights = weights * class_weights[torch.where(labels != VOID, labels, 0).long()]
    norm = world.all_reduce(weights.sum())
    return (losses * weights).sum() / torch.where(norm > 0, norm, 1.0)


@torch.no_grad()
def hard_pixels(losses: Tensor, valid: Tensor, threshold: Tensor, world: World) -> Tensor:
    """Return which pixels are hard, (N, H, W) bool.

    Args:
        losses: (N, H, W) float32, cross-entropy of each pixel, at least 0.
        valid: (N, H, W) bool, False where the pixel is void.
        threshold: () float32 in (0, 1], probability below which a pixel is hard.
        world: the processes that share the batch.
    """
    # Floats of at least 0 sort like their bits, which torch sorts in a third of the time: hardest first, void last.
    keys = torch.where(valid, -losses.abs().view(torch.int32), 1)
    order = world.all_gather(keys.flatten()).sort().values
    least = (world.all_reduce(valid.sum()) + MIN_SHARE - 1) // MIN_SHARE
    hardest = order.gather(0, (least - 1).clamp(min=0)[None])
    return valid & ((losses > -threshold.log()) | (keys <= hardest))
