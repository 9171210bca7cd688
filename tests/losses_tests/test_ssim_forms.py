"""The forms of SSIM: Triton's kernels against the formula, in Triton's interpreter, and which form is used when."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fgseg.losses import HybridLoss
from fgseg.losses.ssim import ssim
from fgseg.losses.ssim_banded import BandedSsim, banded_sum_and_slope
from fgseg.losses.ssim_operator import compare_kernels, kernels_work, ssim_and_slope

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.slow  # imports torch and Triton in a process of its own
def test_kernels_compute_the_formula_and_its_gradient():
    pytest.importorskip("triton", reason="Triton comes with PyTorch for Linux")
    own = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "support" / "interpreted_kernels.py"
    done = subprocess.run([sys.executable, script], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = {name: (float(loss), float(gradient)) for name, loss, gradient in map(str.split, done.stdout.splitlines())}
    assert cases.keys() == {"6x7", "8x32", "11x23"}
    for name, (loss, gradient) in cases.items():
        assert loss < 2e-6 and gradient < 1e-5, name  # float32, see ROUNDING in test_losses.py


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stands in for the module of the kernels, whose function a test sets; nothing is known about it yet."""
    kernels = SimpleNamespace(kernel_sum_and_slope=banded_sum_and_slope)
    monkeypatch.setitem(sys.modules, "fgseg.losses.ssim_kernels", kernels)
    kernels_work.cache_clear()
    yield kernels
    kernels_work.cache_clear()


def test_kernels_are_compared_before_they_are_used(kernels: SimpleNamespace, caplog: pytest.LogCaptureFixture):
    assert compare_kernels(CPU) == ""

    def wrong(*maps: Tensor) -> tuple[Tensor, Tensor]:
        total, slope = banded_sum_and_slope(*maps)
        return total, 1.001 * slope

    kernels.kernel_sum_and_slope = wrong
    assert [kernels_work(CPU), kernels_work(CPU)] == [False, False]
    assert caplog.messages == [
        "loss.ssim: the Triton kernels are not used, slower matrix products are: the mean similarity differs by "
        "0.0e+00, its derivative by 1.0e-03 of its norm"
    ]


def test_machine_without_triton_uses_matrix_products(
    kernels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "fgseg.losses.ssim_kernels", None)  # its import fails
    probs, target = torch.rand(1, 3, 32, 64), torch.zeros(1, 3, 32, 64)
    assert ssim_and_slope(probs, target)[0] == BandedSsim.apply(probs, target)
    assert "slower matrix products are: ModuleNotFoundError: " in caplog.text


@pytest.mark.slow  # imports the compiler
def test_operator_is_called_as_it_is_by_a_compiled_loss(kernels: SimpleNamespace):
    calls, probs = [], torch.rand(1, 3, 16, 32).requires_grad_()
    kernels.kernel_sum_and_slope = lambda *maps: calls.append(maps) or banded_sum_and_slope(*maps)
    target = probs.detach().round()
    compiled = torch.compile(ssim_and_slope, backend="aot_eager", fullgraph=True, dynamic=False)
    values = compiled(probs, target)[0], BandedSsim.apply(probs, target)
    torch.testing.assert_close(*(torch.autograd.grad(value, probs)[0] for value in values))
    assert len(calls) == 2  # the comparison and the loss


@pytest.mark.parametrize(
    ("device", "pixels", "form"),
    [("cpu", 0, "BandedSsim"), ("cuda", 0, "ssim_and_slope"), ("cuda", 10**4, "RsubBackward")],
)
def test_device_and_size_decide_which_form_is_used(
    monkeypatch: pytest.MonkeyPatch, device: str, pixels: int, form: str
):
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", pixels)
    with FakeTensorMode():  # tensors of a GPU without one
        probs = torch.rand(1, 3, 32, 64, device=device).requires_grad_()
        assert form in type(ssim(probs, torch.zeros_like(probs)).grad_fn).__name__


@pytest.mark.gpu
def test_loss_on_a_gpu_is_that_of_the_cpu(gpu: torch.device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", 0)
    assert kernels_work(torch.device("cuda", torch.cuda.current_device()))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 32, 64, generator=generator)
    labels = torch.randint(0, 7, (2, 16, 32), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    loss, results = HybridLoss({"cross_entropy": 1, "ssim": 0.4, "soft_iou": 0.5}), []
    for device in (CPU, gpu):
        there = logits.to(device).requires_grad_()
        value = loss.to(device)(there, labels.to(device))[0]
        results.append((value.item(), torch.autograd.grad(value, there)[0].cpu()))
    (expected, wanted), (found, gradient) = results
    assert found == pytest.approx(expected, rel=1e-5)  # float32 sums in another order
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ssim", "soft_iou", "lovasz"])
def test_compiled_terms_on_a_gpu_are_those_of_the_cpu(gpu: torch.device, name: str):
    """The CPU twin: `test_lovasz_on_a_gpu_is_one_operator`, and the compiled step on the CPU."""
    logits = torch.randn(2, 7, 64, 128, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 7, (2, 256, 512), generator=torch.Generator().manual_seed(1))
    loss, results = HybridLoss({"cross_entropy": 1, name: 0.5}, (1, 5, 1, 1, 5, 5, 2)), []
    for device in (CPU, gpu):
        there, moved = logits.to(device).requires_grad_(), loss.to(device)
        compute = moved if device is CPU else torch.compile(moved, dynamic=False)
        value = compute(there, labels.to(device))[0]
        results.append((value.item(), torch.autograd.grad(value, there)[0].cpu()))
    (expected, wanted), (found, gradient) = results
    assert found == pytest.approx(expected, rel=1e-5)
    assert (gradient - wanted).norm() <= 1e-3 * wanted.norm()
