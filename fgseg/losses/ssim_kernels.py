"""SSIM and its gradient in four Triton kernels, the form for large frames on a GPU.

Each thread sums the eleven taps of a line.  Products of probabilities and targets are computed on the way and no padded
map exists, so that 25 maps are read or written in all.
"""

from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fgseg.losses.ssim_window import C1, C2, RADIUS, blur_matrix

BLOCK = 256
"""Values per program of a kernel."""

# ruff: noqa: PLR0917  # Triton passes the arguments of a kernel by position


@triton.jit
def blur_columns(
    probs, target, band, mean, target_mean, square, product, H, W, N, BLOCK: tl.constexpr, R: tl.constexpr
):
    """Blur probs, target, probs**2 and probs * target, (..., H, W) and N values each, by columns; band is (11, H)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    row = (at // W) % H
    mean_sum = tl.zeros([BLOCK], tl.float32)
    target_sum = tl.zeros([BLOCK], tl.float32)
    square_sum = tl.zeros([BLOCK], tl.float32)
    product_sum = tl.zeros([BLOCK], tl.float32)
    for tap in range(2 * R + 1):
        other = row + tap - R
        exists = inside & (other >= 0) & (other < H)
        weight = tl.load(band + tap * H + row, mask=inside, other=0.0)
        prob = tl.load(probs + at + (tap - R) * W, mask=exists, other=0.0)
        truth = tl.load(target + at + (tap - R) * W, mask=exists, other=0.0)
        mean_sum += weight * prob
        target_sum += weight * truth
        square_sum += weight * prob * prob
        product_sum += weight * prob * truth
    tl.store(mean + at, mean_sum, mask=inside)
    tl.store(target_mean + at, target_sum, mask=inside)
    tl.store(square + at, square_sum, mask=inside)
    tl.store(product + at, product_sum, mask=inside)


@triton.jit
def similarity(
    mean, target_mean, square, product, band, by_mean, by_square, by_product, sums, W, N,
    C1: tl.constexpr, C2: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Blur the moments along rows (band is (11, W)); store the sum of the similarity, and its derivatives by moment.

    See `fgseg.losses.ssim_banded._similarity`; `sums` has one value per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    column = at % W
    m = tl.zeros([BLOCK], tl.float32)
    t = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for tap in range(2 * R + 1):
        other = column + tap - R
        exists = inside & (other >= 0) & (other < W)
        weight = tl.load(band + tap * W + column, mask=inside, other=0.0)
        m += weight * tl.load(mean + at + tap - R, mask=exists, other=0.0)
        t += weight * tl.load(target_mean + at + tap - R, mask=exists, other=0.0)
        squares += weight * tl.load(square + at + tap - R, mask=exists, other=0.0)
        products += weight * tl.load(product + at + tap - R, mask=exists, other=0.0)
    variance = squares - m * m
    luminance = 2 * m * t + C1
    structure = 2 * (products - m * t) + C2
    mean_norm = m * m + t * t + C1
    variance_norm = tl.maximum(variance, 0.0) + tl.maximum(t - t * t, 0.0) + C2
    norm = mean_norm * variance_norm
    value = luminance * structure / norm
    d_product = 2 * luminance / norm
    d_square = tl.where(variance >= 0, -value / variance_norm, 0.0)
    d_mean = t * (2 * structure / norm - d_product) - 2 * m * (value / mean_norm + d_square)
    tl.store(by_mean + at, d_mean, mask=inside)
    tl.store(by_square + at, d_square, mask=inside)
    tl.store(by_product + at, d_product, mask=inside)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, value, 0.0), 0))


@triton.jit
def blur_derivatives(a, b, c, band, a_out, b_out, c_out, H, W, N, BLOCK: tl.constexpr, R: tl.constexpr):
    """Apply the adjoint of the blur along columns to three maps; band is (11, H)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    row = (at // W) % H
    a_sum = tl.zeros([BLOCK], tl.float32)
    b_sum = tl.zeros([BLOCK], tl.float32)
    c_sum = tl.zeros([BLOCK], tl.float32)
    for tap in range(2 * R + 1):
        other = row + tap - R
        exists = inside & (other >= 0) & (other < H)
        weight = tl.load(band + tap * H + row, mask=inside, other=0.0)
        a_sum += weight * tl.load(a + at + (tap - R) * W, mask=exists, other=0.0)
        b_sum += weight * tl.load(b + at + (tap - R) * W, mask=exists, other=0.0)
        c_sum += weight * tl.load(c + at + (tap - R) * W, mask=exists, other=0.0)
    tl.store(a_out + at, a_sum, mask=inside)
    tl.store(b_out + at, b_sum, mask=inside)
    tl.store(c_out + at, c_sum, mask=inside)


@triton.jit
def combine_derivatives(
    by_mean, by_square, by_product, probs, target, band, slope, W, N, BLOCK: tl.constexpr, R: tl.constexpr
):
    """Apply the adjoint of the blur along rows, and store the derivative by probs; band is (11, W)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    column = at % W
    d_mean = tl.zeros([BLOCK], tl.float32)
    d_square = tl.zeros([BLOCK], tl.float32)
    d_product = tl.zeros([BLOCK], tl.float32)
    for tap in range(2 * R + 1):
        other = column + tap - R
        exists = inside & (other >= 0) & (other < W)
        weight = tl.load(band + tap * W + column, mask=inside, other=0.0)
        d_mean += weight * tl.load(by_mean + at + tap - R, mask=exists, other=0.0)
        d_square += weight * tl.load(by_square + at + tap - R, mask=exists, other=0.0)
        d_product += weight * tl.load(by_product + at + tap - R, mask=exists, other=0.0)
    prob = tl.load(probs + at, mask=inside, other=0.0)
    truth = tl.load(target + at, mask=inside, other=0.0)
    tl.store(slope + at, d_mean + 2 * d_square * prob + d_product * truth, mask=inside)


def kernel_sum_and_slope(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity () summed over (N, C, H, W) float32, and its derivative by probs, (N, C, H, W)."""
    height, width = probs.shape[-2:]
    probs, target, count = probs.contiguous(), target.contiguous(), probs.numel()
    (rows, rows_adjoint), (columns, columns_adjoint) = (bands(size, probs.device) for size in (height, width))
    grid = (triton.cdiv(count, BLOCK),)
    a, b, c, d, by_mean, by_square, by_product = (torch.empty_like(probs) for _ in range(7))
    sums = probs.new_empty(grid)
    sizes = {"BLOCK": BLOCK, "R": RADIUS}
    blur_columns[grid](probs, target, rows, a, b, c, d, height, width, count, **sizes)
    similarity[grid](a, b, c, d, columns, by_mean, by_square, by_product, sums, width, count, C1=C1, C2=C2, **sizes)
    blur_derivatives[grid](by_mean, by_square, by_product, rows_adjoint, a, b, c, height, width, count, **sizes)
    combine_derivatives[grid](a, b, c, probs, target, columns_adjoint, d, width, count, **sizes)
    return sums.sum(), d


@cache
def bands(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the (11, size) weights by tap of the blur of a line, and those of its adjoint; zero beyond the ends.

    Kept for the process, so that the capture of a CUDA graph finds them; the steps before it create them.
    """
    # On the CPU and outside any mode: a tensor of torch.inference_mode could not be kept for training.
    with torch.inference_mode(False):
        matrix = blur_matrix(size, torch.zeros(()))
        both = (torch.stack([F.pad(m, (RADIUS, RADIUS)).diagonal(tap) for tap in range(2 * RADIUS + 1)])
                for m in (matrix, matrix.T))  # fmt: skip
        forward, adjoint = (band.to(device) for band in both)
    return forward, adjoint
