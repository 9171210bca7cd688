"""Run the Triton kernels of SSIM on the CPU: TRITON_INTERPRET=1 python interpreted_kernels.py

Prints a line for each case: its name, the difference of the loss from the formula in float64, and that of the gradient
as a fraction of its norm.  Triton reads the variable when it is imported, hence a process of its own.
"""

import torch

from fgseg.losses.hybrid import Batch
from fgseg.losses.ssim import direct_ssim
from fgseg.losses.ssim_operator import kernels_work, ssim_and_slope


def prediction(height: int, width: int) -> tuple[torch.Tensor, Batch]:
    """Logits of three classes and their batch; a corner is void."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, height, width, generator=generator).requires_grad_()
    labels = torch.randint(0, 3, (2, height, width), generator=generator).to(torch.uint8)
    labels[0, :4, :6] = 255
    return logits, Batch(logits, labels, None)


def main() -> None:
    """Compare the kernels with the formula, on frames that fill their blocks and others."""
    if not kernels_work(torch.device("cpu")):
        raise SystemExit("the kernels are not used")
    for size in ((6, 7), (8, 32), (11, 23)):
        logits, batch = prediction(*size)
        expected = direct_ssim(batch.probs.double(), batch.target.double())
        found = ssim_and_slope(batch.probs, batch.target)[0]
        wanted, gradient = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (expected, found))
        error = ((gradient - wanted).norm() / wanted.norm()).item()
        print(f"{size[0]}x{size[1]}", abs(found.item() - expected.item()), error)


if __name__ == "__main__":
    main()
