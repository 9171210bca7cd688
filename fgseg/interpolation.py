"""Bilinear upsampling whose gradient on a GPU is gathered instead of added atomically."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly (align_corners=False); the values are those of `torch.nn.functional.interpolate`.

    On the CPU the gradient is PyTorch's as well.  On a GPU PyTorch adds it atomically, in an order that changes from
    run to run; there it is gathered, which is deterministic and differs by rounding only.

    Args:
        maps: (N, C, h, w), any floating type and memory layout.
        size: height and width of the result in pixels, at least 1; usually larger than (h, w).

    Returns:
        (N, C, *size) of the type of `maps`.  On a GPU it can be differentiated once.
    """
    if maps.device.type == "cpu":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    result: Tensor = GatherUpsample.apply(maps, size)
    return result


class GatherUpsample(torch.autograd.Function):
    """Bilinear interpolation; the backward pass sums, for each input pixel, the few output pixels that it reaches."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.small = maps.shape[-2:]
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        height, width = ctx.small
        exact = torch.promote_types(grad.dtype, torch.float32)  # sums of up to 16 x 16 values in half precision
        by_rows = gather(grad.to(exact).movedim(-2, -1), height).movedim(-1, -2)
        return gather(by_rows, width).to(grad.dtype), None


def gather(grad: Tensor, small: int) -> Tensor:
    """Convert the derivative by an interpolated line (..., L) to that by the line (..., small) before interpolation."""
    index, weights = taps(small, grad.shape[-1], grad)
    return (grad[..., index] * weights).sum(-1)


def taps(small: int, large: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return which values of an interpolated line each value of the line contributes to, and by which weight.

    Output o is read at x(o) = (o + 1/2) * small / large - 1/2, clamped to the line, and value i of the line contributes
    max(0, 1 - |x(o) - i|) to it.  This is above 0 for at most ceil(2 * large / small) neighbouring outputs.

    Args:
        small, large: length of the line before and after interpolation.
        like: decides device and floating type.

    Returns:
        indices (small, K) int64 in [0, large) and weights (small, K); 0 where the window of K outputs is too long.
    """
    line = torch.arange(small, device=like.device)[:, None]
    # The first output with x(o) > i - 1, in whole numbers, where nothing is rounded.
    first = ((2 * line - 1) * large - small).div(2 * small, rounding_mode="floor") + 1
    outputs = first + torch.arange(-(-2 * large // small), device=like.device)
    positions = ((outputs.to(like.dtype) + 0.5) * (small / large) - 0.5).clamp(0, small - 1)
    weights = (1 - (positions - line).abs()).clamp(min=0) * ((outputs >= 0) & (outputs < large))
    return outputs.clamp(0, large - 1), weights
