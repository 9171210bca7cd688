"""Structural similarity of probabilities and labels: the direct formula, and which faster form large frames use."""

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.losses.ssim_banded import BandedSsim
from fgseg.losses.ssim_window import C1, C2, RADIUS, gaussian

log = logging.getLogger(__name__)

MAX_DIRECT_PX = 2**14
"""Frames of at most this many pixels use `direct_ssim`: it takes milliseconds there and rounds like the source."""
CHECKED_PX = (32, 48)
"""Height and width of the frames on which the GPU's kernels are compared with the formula."""
KERNEL_TOLERANCE = 1e-4
"""Relative difference allowed between the gradient by the GPU's kernels and that by the formula.  In float32 the forms
differ by less than 1e-5 on random predictions."""


def ssim(probs: Tensor, target: Tensor) -> Tensor:
    """One minus the mean structural similarity over 11x11 Gaussian windows (sigma 1.5) with reflected borders.

    Args:
        probs: (N, C, H, W) float32 in [0, 1]; zero where the pixel is void.
        target: (N, C, H, W) float32, one-hot; zero where the pixel is void. It gets no gradient.

    Returns:
        () float32 in [0, 2], averaged over all pixels and classes. Void pixels count too, as in the source; where both
        inputs are zero in the whole window they add zero. It can be differentiated once.

    Frames of more than `MAX_DIRECT_PX` are blurred by matrix products, on a GPU by Triton kernels.  Both differ from
    the formula by rounding only: per pixel by up to 1e-4, since moments near 1 are subtracted and the difference is
    divided by C2, and in the mean by a few 1e-6.

    Raises:
        ValueError: H or W is not larger than 5.

    Source: seed, approach 1, term 1; Qin et al., "BASNet", CVPR 2019, equation 4. Variances are clamped at zero.
    """
    height, width = probs.shape[-2:]
    if min(height, width) <= RADIUS:
        least = RADIUS + 1
        raise ValueError(f"ssim got {height}x{width} pixels, must be at least {least}x{least} to reflect the border")
    if height * width <= MAX_DIRECT_PX:
        return direct_ssim(probs, target)
    if probs.device.type == "cuda" and kernels_work():
        return kernel_ssim(probs, target)
    loss: Tensor = BandedSsim.apply(probs, target)
    return loss


def direct_ssim(probs: Tensor, target: Tensor) -> Tensor:
    """Compute `ssim` by one 11x11 convolution per moment; the reference for the faster form."""
    padded = [F.pad(maps, (RADIUS,) * 4, mode="reflect") for maps in (probs, target)]
    kernel = gaussian(probs).unsqueeze(1)
    window = (kernel @ kernel.T).expand(probs.shape[1], 1, -1, -1).contiguous()

    def blur(maps: Tensor) -> Tensor:
        return F.conv2d(maps, window, groups=probs.shape[1])

    x, y = (blur(maps) for maps in padded)
    xx = (blur(padded[0] * padded[0]) - x * x).clamp(min=0)
    yy = (blur(padded[1] * padded[1]) - y * y).clamp(min=0)
    xy = blur(padded[0] * padded[1]) - x * y
    return 1 - ((2 * (x * y) + C1) * (2 * xy + C2) / ((x * x + y * y + C1) * (xx + yy + C2))).mean()


def kernel_ssim(probs: Tensor, target: Tensor) -> Tensor:
    """Compute `ssim` of float32 tensors by the Triton kernels."""
    from fgseg.losses.ssim_kernels import ssim_and_slope  # PyTorch for the CPU or for macOS comes without Triton

    return ssim_and_slope(probs, target)[0]


# The compiled step evaluates this while it traces the loss, instead of tracing it.
@torch.compiler.assume_constant_result
def kernels_work() -> bool:
    """Return whether the Triton kernels run on the current GPU and compute the formula; logs a warning if not."""
    return kernels_work_on(torch.device("cuda", torch.cuda.current_device()))


@cache
def kernels_work_on(device: torch.device) -> bool:
    """Return `kernels_work` of one GPU; compares the kernels with the formula once in a process."""
    try:
        trouble = compare_kernels(device)
    except Exception as error:  # Triton is missing or raises anything, and the other form needs none
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if trouble:
        log.warning("loss.ssim: the Triton kernels are not used, slower matrix products are: %s", trouble)
    return not trouble


@torch.enable_grad()
def compare_kernels(device: torch.device) -> str:
    """Compare the kernels with the formula on two random frames; describes the difference, "" if there is none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (2, 1, *CHECKED_PX), generator=generator)
    target = (labels == torch.arange(7).view(-1, 1, 1)).float().to(device)
    probs = torch.rand(2, 7, *CHECKED_PX, generator=generator).to(device).requires_grad_()
    expected, found = (torch.autograd.grad(form(probs, target), probs)[0] for form in (direct_ssim, kernel_ssim))
    difference = ((found - expected).norm() / expected.norm()).item()
    return "" if difference <= KERNEL_TOLERANCE else f"their gradient differs by {difference:.1e} of its norm"
