"""Attention of SegFormer in groups of queries, which keeps a GPU busy in the backward pass."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, SegformerForSemanticSegmentation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

IN_GROUPS = "sdpa_in_groups"
"""Name under which Transformers knows `attention_in_groups`."""
GROUP_QUERIES = 512
"""Queries of a group.  With it a step of two frames of 512x1024 took 5.3 instead of 7.2 ms on an H200; other sizes
were not tried in a whole step."""


def attention_in_groups(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute scaled dot-product attention; on a GPU each group of queries is an element of the batch.

    The backward kernels of cuDNN and of flash attention run one thread block for each block of keys, head and image.
    SegFormer reduces the keys, so that its first stage has 512 of them for the 32,768 queries of a frame of 512x1024,
    and one head: 16 thread blocks for two frames, on an H200's 132 multiprocessors.  A query does not depend on the
    others, so that every group attends to a copy of the keys, and the gradients of the copies are summed; in half
    precision each of them is rounded before.

    Args:
        module: the attention of a SegFormer.
        query: (B, heads, N, D).  If N is not a multiple of `GROUP_QUERIES`, there are no groups.
        key, value: (B, heads, M, D).
        attention_mask: None in a SegFormer.
        options: of Transformers' function, such as `scaling`.

    Returns:
        (B, N, heads, D), and None.
    """
    groups, rest = divmod(query.shape[2], GROUP_QUERIES)
    if query.device.type == "cpu" or groups < 2 or rest or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attend(module, query, key, value, groups, **options), None


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, groups: int, **options: Any) -> Tensor:
    """Compute the attention (B, N, heads, D) with the queries divided into equal groups."""
    result, _ = sdpa_attention_forward(module, *split_queries(query, key, value, groups), None, **options)
    return result.unflatten(0, (-1, groups)).flatten(1, 2)


def split_queries(query: Tensor, key: Tensor, value: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries (B groups, heads, N / groups, D) and copies of key and value (B groups, heads, M, D)."""
    split = query.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
    key, value = (maps[:, None].expand(-1, groups, -1, -1, -1).flatten(0, 1) for maps in (key, value))
    return split, key, value


def group_attention(model: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """Let a model compute its attention by `attention_in_groups`; its saved files stay the same."""
    AttentionInterface.register(IN_GROUPS, attention_in_groups)
    model.set_attn_implementation(IN_GROUPS)
    return model
