"""Lovász-Softmax: the convex surrogate of the Jaccard index."""

import torch
from torch import Tensor

from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.labels import VOID


def lovasz(probs: Tensor, labels: Tensor, world: World = SINGLE_PROCESS) -> Tensor:
    """Return the Lovász extension of the Jaccard loss, summed over the classes present and divided by all C.

    Args:
        probs: (N, C, H, W) float32 in [0, 1]; any finite value where the pixel is void.
        labels: (N, H, W) uint8 or int64, 0..C-1 or VOID.
        world: the processes that share the batch, N frames each; errors and labels are gathered from all.

    Returns:
        () float32 in [0, 1], over all pixels of the batch as one set. A class absent from the labels adds 0, so an
        all-void batch gives zero with zero gradient. With several processes, this process's summand of the loss of the
        whole batch.

    Source: seed, approach 3; Berman et al., "The Lovász-Softmax loss", CVPR 2018, equations 8 and 9.
    """
    classes = torch.arange(probs.shape[1], device=probs.device)
    truth = labels.flatten() == classes[:, None]
    errors = (truth.to(probs.dtype) - probs.transpose(0, 1).flatten(1)).abs()
    everywhere = world.all_gather(labels.flatten())
    weights = jaccard_steps(world.all_gather(errors.detach()), everywhere == classes[:, None], everywhere != VOID)
    return (errors * world.local_part(weights).to(errors.dtype)).sum() / len(classes)


# An operator, so that torch.compile calls it as it is: torch 2.11 cannot compile the running sum for a GPU.
@torch.library.custom_op("fgseg::jaccard_steps", mutates_args=())
def jaccard_steps(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the increase of each class's Jaccard loss as pixels are counted as wrong, in descending order of error.

    Args:
        errors: (C, P) float32 in [0, 1].
        truth: (C, P) bool, whether the pixel is of the class.
        valid: (P,) bool, whether the pixel is not void.

    Returns:
        (C, P) float32 in [0, 1], zero for void pixels and for classes without pixels.
    """
    # Non-negative floats sort like their bits, and torch sorts one row of int32 ascending with a radix sort: on the
    # CPU 5 to 9 times as fast as one sort of the (C, P) floats. Void pixels get the largest key and come last.
    keys = torch.where(valid, -errors.float().view(torch.int32), 1)
    order = torch.stack([row.sort().indices for row in keys])
    hits = truth.gather(1, order)
    # Row by row: of a matrix with few rows a GPU sums each by one thread block only.
    seen = torch.stack([row.cumsum(0, dtype=torch.int32) for row in hits])
    intersection = seen[:, -1:] - seen
    union = intersection + torch.arange(1, errors.shape[1] + 1, device=errors.device, dtype=torch.int32)
    # Differences of consecutive losses in closed form: subtracting two nearly equal losses loses half the digits. For
    # void pixels and absent classes the intersection is zero.
    wide = union.float()
    steps = torch.where(hits, 1 / wide, intersection / (wide * (wide - 1).clamp(min=1)))
    return torch.zeros_like(steps).scatter_(1, order, steps)


@jaccard_steps.register_fake
def _(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    return torch.empty(errors.shape, dtype=torch.float32, device=errors.device)
