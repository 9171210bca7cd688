"""The Gaussian window of SSIM and the constants of its formula."""

import torch
from torch import Tensor

RADIUS = 5
"""Taps of the window on either side of its middle, as in the source."""
SIGMA = 1.5
"""Standard deviation of the window in pixels, as in the source."""
C1 = 0.01**2
C2 = 0.03**2


def gaussian(like: Tensor) -> Tensor:
    """Return the (11,) Gaussian weights, which sum to one."""
    taps = torch.arange(-RADIUS, RADIUS + 1, device=like.device, dtype=like.dtype)
    weights = torch.exp(-taps.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def blur_matrix(size: int, like: Tensor) -> Tensor:
    """Return the (size, size) matrix that blurs a line of pixels, reflected without repeating the border pixel."""
    taps = torch.arange(-RADIUS, RADIUS + 1, device=like.device)
    columns = (torch.arange(size, device=like.device)[:, None] + taps).abs()
    columns = torch.where(columns < size, columns, 2 * (size - 1) - columns)
    return like.new_zeros(size, size).scatter_add_(1, columns, gaussian(like).expand(size, -1))
