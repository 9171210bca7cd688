"""The loss of the edge head: balanced binary cross-entropy on the edges of the thin classes' labels."""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.labels import VOID

WINDOW_PX = 3
"""Side of the window in which labels are compared: an edge is then two pixels wide, one on each side."""


def edge_loss(edge_logits: Tensor, labels: Tensor, thin: Tensor, world: World = SINGLE_PROCESS) -> Tensor:
    """Return the binary cross-entropy of predicted edges, averaged over the edge cells and over the others alike.

    A cell is the part of an image that one logit stands for; it is an edge if one of its pixels is.  Both averages
    count half, since edges of thin classes are rare.

    Args:
        edge_logits: (N, 1, h, w) float32, above 0 where an edge is predicted.
        labels: (N, H, W) uint8 or int64, 0..C-1 or VOID, at least as large as the logits.
        thin: (C,) bool, whether the class is thin.
        world: the processes that share the batch.

    Returns:
        () float32, not negative.  With several processes, this process's summand of the loss of the whole batch.
        Zero, with zero gradient, if no cell of the batch is an edge, or none is not; cells of void pixels only are
        neither.

    Source: Xu, Xiong and Bhattacharyya, "PIDNet", CVPR 2023: an auxiliary boundary head of one channel, trained by the
    balanced cross-entropy of Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015, equation 2; here divided by
    its sum of weights, so that it does not depend on how rare edges are, and on the edges of thin classes only.
    """
    maps = torch.stack([label_edges(labels, thin), labels != VOID], 1).to(edge_logits.dtype)
    edges, valid = F.adaptive_max_pool2d(maps, edge_logits.shape[-2:]).bool().unbind(1)
    groups = torch.stack([edges, valid & ~edges])
    counts = world.all_reduce(groups.sum((1, 2, 3)))
    shares = torch.where(counts.min() > 0, 0.5 / counts.clamp(min=1), 0.0)
    losses = F.binary_cross_entropy_with_logits(edge_logits[:, 0], edges.to(edge_logits.dtype), reduction="none")
    return (losses * groups * shares.view(-1, 1, 1, 1)).sum()


def label_edges(labels: Tensor, thin: Tensor) -> Tensor:
    """Return the edges of thin classes, (N, H, W) bool.

    A pixel is an edge if a pixel of another class lies in the 3x3 window around it and one of the two classes is thin.
    Void pixels are neither.

    Args:
        labels: (N, H, W) uint8 or int64, 0..C-1 or VOID.
        thin: (C,) bool, whether the class is thin.
    """
    # All classes that are not thin count as one, so that a pixel is an edge where two values meet in the window.
    table = torch.where(thin, torch.arange(len(thin), device=thin.device) + 1, 0).to(torch.uint8)
    valid = labels != VOID
    codes = table[torch.where(valid, labels, 0).long()]
    highest = over_window(codes.masked_fill(~valid, 0), torch.maximum, outside=0)
    lowest = over_window(codes.masked_fill(~valid, VOID), torch.minimum, outside=VOID)
    return valid & (highest != lowest)


def over_window(values: Tensor, combine: Callable[[Tensor, Tensor], Tensor], outside: int) -> Tensor:
    """Combine the values (N, H, W) uint8 in the window around each pixel; pixels beyond the border have `outside`.

    By shifted copies, which take a fifth of the time of max_pool2d on the CPU.
    """
    height, width = values.shape[1:]
    padded = F.pad(values, (WINDOW_PX // 2,) * 4, value=outside)
    rows = reduce(combine, [padded[:, shift : shift + height] for shift in range(WINDOW_PX)])
    return reduce(combine, [rows[:, :, shift : shift + width] for shift in range(WINDOW_PX)])
