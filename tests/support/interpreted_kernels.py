"""Run the Triton kernels of SSIM on the CPU: TRITON_INTERPRET=1 python interpreted_kernels.py

Prints a line for each case: its name, the difference of the loss from the formula in float64, and that of the gradient
as a fraction of its norm.  Triton reads the variable when it is imported, hence a process of its own.
"""

import torch
from torch import Tensor

from fgseg.losses.ssim import direct_ssim
from fgseg.losses.ssim_kernels import kernel_sum_and_slope


def frames(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return probabilities (2, 3, H, W) float32 and their one-hot target; a corner is void."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(2, 3, height, width, generator=generator).softmax(1)
    labels = torch.randint(0, 3, (2, 1, height, width), generator=generator)
    target = (labels == torch.arange(3).view(-1, 1, 1)).float()
    for maps in (probs, target):
        maps[0, :, :4, :6] = 0
    return probs, target


def main() -> None:
    """Compare the kernels with the formula, on frames that fill their blocks and others."""
    for size in ((6, 7), (8, 32), (11, 23)):
        probs, target = frames(*size)
        total, slope = kernel_sum_and_slope(probs, target)
        exact = probs.double().requires_grad_()
        expected = direct_ssim(exact, target.double())
        gradient = torch.autograd.grad(expected, exact)[0]
        error = (slope / -slope.numel() - gradient).norm() / gradient.norm()
        print(f"{size[0]}x{size[1]}", abs(1 - total / slope.numel() - expected).item(), error.item())


if __name__ == "__main__":
    main()
