"""Attention in groups of queries computes what attention computes."""

import pytest
import torch
from thin_street import THIN_STREET
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fgseg.model.attention import GROUP, attention_in_groups, split_queries
from fgseg.model.segformer import build_model

WIDTH, KEYS = 16, 8


def inputs(queries: int, heads: int = 2, device: str | torch.device = "cpu") -> list[Tensor]:
    """Query, key and value of two frames in the layout of SegFormer, tokens before heads."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, n, heads, WIDTH, generator=generator) for n in (queries, KEYS, KEYS)]
    return [tensor.to(device).transpose(1, 2).requires_grad_() for tensor in maps]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    return sdpa_attention_forward(module, query, key, value, None)[0]


def test_groups_change_neither_values_nor_gradients():
    given = inputs(24)
    expected = attend(*given)
    found = attend(*split_queries(*given, groups=3)).unflatten(0, (2, 3)).flatten(1, 2)
    torch.testing.assert_close(found, expected)
    slope = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    for one, other in zip(
        torch.autograd.grad(found, given, slope), torch.autograd.grad(expected, given, slope), strict=True
    ):
        torch.testing.assert_close(one, other)


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
def test_attention_on_a_gpu_is_that_of_the_cpu(gpu: torch.device):
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    results = []
    for device in ("cpu", gpu):
        given = inputs(4 * GROUP, device=device)
        value = attention_in_groups(module, *given, None)[0]
        slope = torch.linspace(-1, 1, value.numel(), device=device).view_as(value)
        results.append([tensor.cpu() for tensor in (value, *torch.autograd.grad(value, given, slope))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
