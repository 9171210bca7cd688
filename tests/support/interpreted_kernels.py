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
    """Compare plain and compiled calls with the formula, on frames that fill the kernels' blocks and others."""
    if not kernels_work(torch.device("cpu")):
        raise SystemExit("the kernels are not used")
    compiled = torch.compile(ssim_and_slope, backend="aot_eager", fullgraph=True, dynamic=False)
    cases = {"6x7": (ssim_and_slope, (6, 7)), "11x23": (ssim_and_slope, (11, 23)), "compiled": (compiled, (8, 16))}
    for name, (form, size) in cases.items():
        logits, batch = prediction(*size)
        expected, found = direct_ssim(batch.probs.double(), batch.target.double()), form(batch.probs, batch.target)[0]
        wanted, gradient = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (expected, found))
        print(name, abs(found.item() - expected.item()), ((gradient - wanted).norm() / wanted.norm()).item())


if __name__ == "__main__":
    main()
