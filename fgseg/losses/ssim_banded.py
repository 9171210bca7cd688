"""SSIM and its gradient by products with band matrices: for large frames on the CPU, and where kernels do not work."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgseg.losses.ssim_window import C1, C2, RADIUS, blur_matrix

CPU_CHUNK_VALUES = 2**19
"""Values processed at a time on the CPU: maps of this size stay in its caches (2/3 of the time of one pass)."""
CPU_BLOCK, DEVICE_BLOCK = 16, 128
"""Rows or columns per matrix product: smaller blocks multiply fewer zeros, larger blocks need fewer calls."""


class BandedSsim(torch.autograd.Function):
    """`ssim` with its gradient computed in the forward pass, which keeps one map for the backward pass, not thirty."""

    @staticmethod
    def forward(ctx: Any, probs: Tensor, target: Tensor) -> Tensor:
        height, width = probs.shape[-2:]
        blur = _Blur(height, width, probs)
        chunk = max(CPU_CHUNK_VALUES // (height * width), 1) if probs.device.type == "cpu" else probs.shape[:2].numel()
        chunks = (rows_first(maps).split(chunk, 1) for maps in (probs, target))
        results = [_sum_and_slope(x, y, blur, ctx.needs_input_grad[0]) for x, y in zip(*chunks, strict=True)]
        sums, slopes = zip(*results, strict=True)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat([slope.transpose(0, 1) for slope in slopes]).view_as(probs))
        return 1 - torch.stack(sums).sum() / probs.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * (grads[0] / -slope.numel()), None


def banded_sum_and_slope(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity () summed over (N, C, H, W), and its derivative by probs, (N, C, H, W)."""
    height, width = probs.shape[-2:]
    blur = _Blur(height, width, probs)
    total, slope = _sum_and_slope(rows_first(probs), rows_first(target), blur, wants_slope=True)
    assert slope is not None
    return total, slope.transpose(0, 1).contiguous().view_as(probs)


def rows_first(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a view (H, N * C, W): the blur of all planes is then one product per direction."""
    return maps.flatten(0, 1).transpose(0, 1)


def _sum_and_slope(probs: Tensor, target: Tensor, blur: "_Blur", wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Return the similarity summed over maps (H, M, W), and with `wants_slope` its derivative by probs (H, M, W)."""
    probs, target = probs.contiguous(), target.contiguous()
    moments = (blur(maps) for maps in (probs, target, probs * probs, probs * target))
    similarity, *slopes = _similarity(*moments)
    if not wants_slope:
        return similarity.sum(), None
    by_mean, by_square, by_product = (blur.adjoint(maps) for maps in slopes)
    return similarity.sum(), by_mean.addcmul_(by_square, probs, value=2).addcmul_(by_product, target)


def _similarity(mean: Tensor, target_mean: Tensor, square: Tensor, product: Tensor) -> tuple[Tensor, ...]:
    """Return the similarity at every pixel and its derivatives by mean, square and product; each is (H, M, W).

    The arguments are the blurred probs, target, probs**2 and probs * target. The target is binary, hence equal to its
    square. Most steps write in place, since new memory costs the CPU more time than the arithmetic.
    """
    variance = torch.addcmul(square, mean, mean, value=-1)
    target_variance = torch.addcmul(target_mean, target_mean, target_mean, value=-1).clamp_(min=0)
    luminance = (mean * target_mean).mul_(2).add_(C1)
    structure = torch.addcmul(product, mean, target_mean, value=-1).mul_(2).add_(C2)
    mean_norm = (mean * mean).addcmul_(target_mean, target_mean).add_(C1)
    variance_norm = variance.clamp(min=0).add_(target_variance).add_(C2)
    norm = mean_norm * variance_norm
    similarity = (luminance * structure).div_(norm)
    by_product = luminance.div_(norm).mul_(2)
    by_square = variance_norm.reciprocal_().mul_(similarity).mul_(variance >= 0).neg_()
    by_mean = structure.div_(norm).mul_(2).sub_(by_product).mul_(target_mean)
    by_mean.addcmul_(mean_norm.reciprocal_().mul_(similarity).add_(by_square), mean, value=-2)
    return similarity, by_mean, by_square, by_product


class _Blur:
    """The Gaussian window as two band matrices, applied block by block of the band.

    On the CPU this takes a quarter of the time of depthwise convolutions, gradients included.
    """

    def __init__(self, height: int, width: int, like: Tensor):
        self.rows, self.columns = blur_matrix(height, like), blur_matrix(width, like)
        self.block = CPU_BLOCK if like.device.type == "cpu" else DEVICE_BLOCK

    def __call__(self, maps: Tensor) -> Tensor:
        """Blur contiguous maps (H, M, W)."""
        return self._product(self.rows, maps, self.columns)

    def adjoint(self, maps: Tensor) -> Tensor:
        """Convert derivatives by the blurred maps, (H, M, W), to derivatives by the maps."""
        return self._product(self.rows.T, maps, self.columns.T)

    def _product(self, rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
        """Compute rows @ plane @ columns.T for every plane of maps (H, M, W)."""
        half_blurred, blurred = torch.empty_like(maps), torch.empty_like(maps)
        self._multiply(rows, maps.flatten(1), half_blurred.flatten(1))
        self._multiply(columns, half_blurred.flatten(0, 1).T, blurred.flatten(0, 1).T)
        return blurred

    def _multiply(self, matrix: Tensor, lines: Tensor, result: Tensor) -> None:
        """Write matrix @ lines, (S, K), into result, in blocks of rows; a block depends on RADIUS rows beyond it.

        The blocks inside have equal parts of the band, and are one batched product of overlapping views.
        """
        block, size = self.block, len(matrix)
        inner = max((size - RADIUS) // block - 1, 0)
        if inner:
            part = matrix[block : 2 * block, block - RADIUS : 2 * block + RADIUS].expand(inner, -1, -1)
            windows = lines[block - RADIUS :].unfold(0, block + 2 * RADIUS, block)[:inner].mT
            torch.bmm(part, windows, out=result[block : (inner + 1) * block].unflatten(0, (inner, block)))
        for start in (0, *range((inner + 1) * block, size, block)):
            into = slice(max(start - RADIUS, 0), start + block + RADIUS)
            torch.mm(matrix[start : start + block, into], lines[into], out=result[start : start + block])
