"""SSIM and its gradient on a GPU as one operator: Triton kernels, or matrix products where the kernels do not work."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fgseg.losses.ssim_banded import banded_sum_and_slope

log = logging.getLogger(__name__)

CHECKED_CLASSES = 5
"""Classes of the frames on which the two forms are compared; any number will do."""
CHECKED_PX = (16, 32)
"""Height and width of the frames on which the kernels are compared with the matrix products."""
TOLERANCE = 1e-4
"""Relative difference allowed between the two forms' derivatives; in float32 they differ by less than 1e-5."""


# An operator, so that torch.compile calls it as it is instead of tracing it.
@torch.library.custom_op("fgseg::ssim_and_slope", mutates_args=())
def ssim_and_slope(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `fgseg.losses.ssim.ssim` of large frames, and the derivative of the summed similarity by probs.

    Args:
        probs, target: (N, C, H, W) float32, as for `ssim`.

    Returns:
        The loss, (), which can be differentiated once, and the derivative (N, C, H, W).
    """
    if kernels_work(probs.device):
        from fgseg.losses.ssim_kernels import kernel_sum_and_slope as sum_and_slope
    else:
        sum_and_slope = banded_sum_and_slope
    total, slope = sum_and_slope(probs, target)
    return 1 - total / probs.numel(), slope


@ssim_and_slope.register_fake
def _(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return probs.new_empty(()), torch.empty(probs.shape, dtype=probs.dtype, device=probs.device)


def keep_slope(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    """Keep the derivative for the backward pass."""
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def scale_slope(ctx: Any, by_loss: Tensor, by_slope: None) -> tuple[Tensor, None]:
    """Return the derivative of the loss by probs; the loss is one minus the mean similarity."""
    (slope,) = ctx.saved_tensors
    return slope * (by_loss / -slope.numel()), None


ssim_and_slope.register_autograd(scale_slope, setup_context=keep_slope)


@cache
def kernels_work(device: torch.device) -> bool:
    """Return whether the Triton kernels run on a device and compute what the matrix products do; warns if not.

    Compares them once in a process, before the capture of a CUDA graph, which the first steps precede.
    """
    try:
        trouble = compare_kernels(device)
    except Exception as error:  # Triton is missing or raises anything, and the other form needs none
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if trouble:
        log.warning("loss.ssim: the Triton kernels are not used, slower matrix products are: %s", trouble)
    return not trouble


def compare_kernels(device: torch.device) -> str:
    """Compare the two forms on two random frames; describes the difference, "" if there is none."""
    from fgseg.losses.ssim_kernels import kernel_sum_and_slope  # PyTorch for the CPU or for macOS lacks Triton

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CHECKED_CLASSES, (2, 1, *CHECKED_PX), generator=generator)
    target = (labels == torch.arange(CHECKED_CLASSES).view(-1, 1, 1)).float().to(device)
    probs = torch.rand(2, CHECKED_CLASSES, *CHECKED_PX, generator=generator).to(device)
    (total, slope), (expected_total, expected) = (
        f(probs, target) for f in (kernel_sum_and_slope, banded_sum_and_slope)
    )
    by_slope = ((slope - expected).norm() / expected.norm()).item()
    by_total = ((total - expected_total).abs() / probs.numel()).item()
    if max(by_slope, by_total) <= TOLERANCE:
        return ""
    return f"the mean similarity differs by {by_total:.1e}, its derivative by {by_slope:.1e} of its norm"
