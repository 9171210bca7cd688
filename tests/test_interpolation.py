"""Upsampling on a GPU: the values of PyTorch, and its gradient without atomic additions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.interpolation import GatherUpsample, upsample

SIZES = [
    ((4, 8), (8, 16)),  # the head's factors of 2, 4 and 8
    ((4, 8), (16, 32)),
    ((2, 4), (16, 32)),
    ((5, 3), (9, 7)),  # frames whose sides are no multiples of 32
    ((1, 2), (7, 2)),
    ((9, 7), (5, 3)),
]


def maps_and_slope(small: tuple[int, int], large: tuple[int, int], **options) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *small, generator=generator).to(**options).requires_grad_()
    return maps, torch.randn(2, 3, *large, generator=generator).to(**options)


def plain(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def assert_same(maps: Tensor, slope: Tensor, size: tuple[int, int], expected_maps: Tensor, tolerance: float) -> None:
    found, expected = GatherUpsample.apply(maps, size), plain(maps, size)
    assert torch.equal(found, expected)
    by_gather = torch.autograd.grad(found, maps, slope)[0]
    wanted = torch.autograd.grad(plain(expected_maps, size), expected_maps, slope.to(expected_maps.dtype))[0]
    assert by_gather.dtype == maps.dtype
    assert (by_gather.double() - wanted.double()).norm() <= tolerance * wanted.double().norm()


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_gathered_gradient_is_that_of_pytorch(small: tuple[int, int], large: tuple[int, int]):
    maps, slope = maps_and_slope(small, large)
    assert_same(maps, slope, large, maps, 1e-6)  # float32 sums of up to 256 values in another order
    wide = maps.detach().double().requires_grad_()
    # PyTorch computes the positions in the maps' type: in float64 nothing but the order of the sums differs.
    assert_same(wide, slope.double(), large, wide, 1e-14)


def test_gradient_in_half_precision_is_summed_in_float32():
    maps, slope = maps_and_slope((4, 8), (32, 64), dtype=torch.float16, memory_format=torch.channels_last)
    assert_same(maps, slope, (32, 64), maps.detach().float().requires_grad_(), 5e-4)  # float16 has 11 bits


@pytest.mark.slow  # imports the compiler
def test_compiled_gradient_is_the_same_where_the_result_is_changed_in_place():
    maps, slope = maps_and_slope((4, 8), (8, 16))

    def summed(maps: Tensor) -> Tensor:
        return GatherUpsample.apply(maps, (8, 16)).add_(1)

    compiled = torch.compile(summed, backend="aot_eager", fullgraph=True, dynamic=False)
    found, expected = (torch.autograd.grad(form(maps), maps, slope)[0] for form in (compiled, summed))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("device", "gathers"), [("cpu", False), ("meta", True)])  # meta: a device that is not the CPU
def test_device_decides_how_the_gradient_is_computed(device: str, gathers: bool):
    maps = torch.empty(1, 1, 2, 2, device=device, requires_grad=True)
    assert ("GatherUpsample" in type(upsample(maps, (4, 4)).grad_fn).__name__) is gathers


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_on_a_gpu_is_that_of_the_cpu_and_always_the_same(gpu: torch.device, dtype: torch.dtype):
    maps, slope = maps_and_slope((16, 32), (128, 256))
    expected = torch.autograd.grad(plain(maps, (128, 256)), maps, slope)[0]
    there = maps.detach().to(gpu, dtype).requires_grad_()
    found = [torch.autograd.grad(upsample(there, (128, 256)), there, slope.to(gpu, dtype))[0] for _ in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3  # inputs and result are rounded to 11 bits
    assert (found[0].cpu().float() - expected).norm() <= tolerance * expected.norm()
