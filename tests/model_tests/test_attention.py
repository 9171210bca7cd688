"""Attention in groups of queries computes what attention computes."""

import pytest
import torch
from thin_street import THIN_STREET
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fgseg.model.attention import GROUP_QUERIES, attend, attention_in_groups, split_queries
from fgseg.model.segformer import build_model

WIDTH, KEYS = 16, 8


def inputs(queries: int, heads: int = 2, device: str | torch.device = "cpu") -> list[Tensor]:
    """Query, key and value of two frames in the layout of SegFormer, tokens before heads."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, n, heads, WIDTH, generator=generator) for n in (queries, KEYS, KEYS)]
    return [tensor.to(device).transpose(1, 2).requires_grad_() for tensor in maps]


def module() -> nn.Module:
    """What Transformers' attention reads from a module."""
    made = nn.Module()
    made.is_causal = False  # type: ignore[assignment]
    return made


def value_and_gradients(value: Tensor, given: list[Tensor]) -> list[Tensor]:
    slope = torch.linspace(-1, 1, value.numel(), device=value.device, dtype=value.dtype).view_as(value)
    return [value, *torch.autograd.grad(value, given, slope)]


def test_groups_change_neither_values_nor_gradients():
    given = inputs(24)
    plain = value_and_gradients(sdpa_attention_forward(module(), *given, None)[0], given)
    grouped = value_and_gradients(attend(module(), *given, groups=3), given)
    for expected, found in zip(plain, grouped, strict=True):
        torch.testing.assert_close(found, expected)


def test_queries_are_split_without_a_copy():
    query, key, value = inputs(24)
    split, *_ = split_queries(query, key, value, groups=3)
    assert split.shape == (6, 2, 8, WIDTH) and split.data_ptr() == query.data_ptr()


def test_models_use_it_and_their_config_does_not_name_it(tmp_path):
    model = build_model("small", THIN_STREET)
    model.save_pretrained(tmp_path)
    assert model.config._attn_implementation == "sdpa_in_groups"
    assert "sdpa_in_groups" not in (tmp_path / "config.json").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_on_a_gpu_is_that_of_the_cpu(gpu: torch.device, dtype: torch.dtype):
    results = []
    for device, precision in (("cpu", torch.float32), (gpu, dtype)):
        given = [tensor.detach().to(precision).requires_grad_() for tensor in inputs(4 * GROUP_QUERIES, device=device)]
        value = attention_in_groups(module(), *given, None)[0]
        results.append([tensor.cpu().float() for tensor in value_and_gradients(value, given)])
    tolerance = 1e-3 if dtype == torch.float32 else 1e-2
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
