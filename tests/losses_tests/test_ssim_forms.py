"""The forms of SSIM: Triton's kernels against the formula, in Triton's interpreter, and which form is used when."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fgseg.losses.ssim as forms
from fgseg.losses import HybridLoss
from fgseg.losses.ssim import compare_kernels, direct_ssim, kernels_work_on, ssim
from fgseg.losses.ssim_banded import BandedSsim

ROOT = Path(__file__).parents[2]
KERNELS = "fgseg.losses.ssim_kernels"
CPU = torch.device("cpu")


def test_kernels_compute_the_formula_and_its_gradient():
    pytest.importorskip("triton", reason="Triton comes with PyTorch for Linux")
    own = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "support" / "interpreted_kernels.py"
    done = subprocess.run([sys.executable, script], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = {name: (float(loss), float(gradient)) for name, loss, gradient in map(str.split, done.stdout.splitlines())}
    assert cases.keys() == {"6x7", "11x23", "compiled"}
    for name, (loss, gradient) in cases.items():
        assert loss < 2e-6 and gradient < 1e-5, name  # float32, see ROUNDING in test_losses.py


def test_kernels_are_compared_with_the_formula_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(forms, "kernel_ssim", BandedSsim.apply)
    assert compare_kernels(CPU) == ""
    monkeypatch.setattr(forms, "kernel_ssim", lambda probs, target: 1.001 * direct_ssim(probs, target))
    kernels_work_on.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [kernels_work_on(CPU), kernels_work_on(CPU)] == [False, False]
    assert caplog.messages == [
        "loss.ssim: the Triton kernels are not used, slower matrix products are: their gradient differs by 1.0e-03 of "
        "its norm"
    ]


def test_machine_without_triton_uses_matrix_products(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setitem(sys.modules, KERNELS, None)  # its import fails
    kernels_work_on.cache_clear()
    assert not kernels_work_on(CPU)
    assert "slower matrix products are: ModuleNotFoundError: " in caplog.text


@pytest.mark.parametrize(
    ("device", "pixels", "work", "form"),
    [
        ("cpu", 0, True, "BandedSsim"),
        ("cuda", 0, True, "ssim_and_slope"),
        ("cuda", 0, False, "BandedSsim"),
        ("cuda", 10**4, True, "RsubBackward"),
    ],
)
def test_device_and_size_decide_which_form_is_used(
    monkeypatch: pytest.MonkeyPatch, device: str, pixels: int, work: bool, form: str
):
    monkeypatch.setattr(forms, "MAX_DIRECT_PX", pixels)
    monkeypatch.setattr(forms, "kernels_work", lambda: work)
    with FakeTensorMode():  # tensors of a GPU without one
        probs = torch.rand(1, 3, 32, 64, device=device).requires_grad_()
        assert form in type(ssim(probs, torch.zeros_like(probs)).grad_fn).__name__


@pytest.mark.gpu
def test_loss_on_a_gpu_is_that_of_the_cpu(gpu: torch.device, monkeypatch: pytest.MonkeyPatch):
    kernels_work_on.cache_clear()
    monkeypatch.setattr(forms, "MAX_DIRECT_PX", 0)
    assert forms.kernels_work()
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
