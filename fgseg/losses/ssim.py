"""Structural similarity of probabilities and labels: the direct formula, and which faster form large frames use."""

import torch.nn.functional as F
from torch import Tensor

from fgseg.losses.ssim_banded import BandedSsim
from fgseg.losses.ssim_operator import ssim_and_slope
from fgseg.losses.ssim_window import C1, C2, RADIUS, gaussian

MAX_DIRECT_PX = 2**14
"""Frames of at most this many pixels use `direct_ssim`: it takes milliseconds there and rounds like the source."""


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
    if probs.device.type == "cuda":
        return ssim_and_slope(probs, target)[0]
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
