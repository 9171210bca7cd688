"""SegFormer's decode head with its linear steps in another order: the same weights, the same function, less work."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead


class CommutedDecodeHead(SegformerDecodeHead):
    """Fuses each stage at its own resolution, then upsamples and sums.

    The stock head projects the four stages, upsamples all to a quarter of the image, concatenates them and fuses them
    by a 1x1 convolution.  That convolution acts on each stage's channels apart and, being 1x1, commutes with bilinear
    upsampling; so the wide maps need never exist at the full size.  A stage's projection and its part of the fusion are
    one matrix product.  Channels lie innermost, so that upsampling takes a quarter to a seventh of the time on the CPU.
    """

    def forward(self, encoder_hidden_states: list[Tensor], **kwargs: Any) -> Tensor:
        """Turn the encoder's maps, (B, C_i, H_i, W_i) of any floating type, into logits (B, 7, H_0, W_0)."""
        fused = self.activation(self.batch_norm(self.fuse(encoder_hidden_states)))
        tokens = self.dropout(fused).permute(0, 2, 3, 1)
        logits = F.linear(tokens, self.classifier.weight.flatten(1), self.classifier.bias)
        return logits.permute(0, 3, 1, 2).contiguous()

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """The stock head's fused map (B, D, H_0, W_0), its channels innermost in memory."""
        # The stock head concatenates the stages deepest first.
        parts = self.linear_fuse.weight.flatten(1).chunk(len(stages), dim=1)[::-1]
        total = None
        for stage, part, projection in zip(stages, parts, self.linear_projections, strict=True):
            weight, bias = part @ projection.proj.weight, part @ projection.proj.bias
            mapped = F.linear(stage.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
            if total is None:
                total = mapped
            else:
                wide = F.interpolate(mapped, size=total.shape[-2:], mode="bilinear", align_corners=False)
                total = wide.add_(total)
        assert total is not None
        return total


class Dropout(nn.Dropout):
    """Dropout that on the CPU draws 16 random bits a value, in a third of the time; p is rounded to 2**-16."""

    def forward(self, values: Tensor) -> Tensor:
        """Zero each value with probability p and scale the others so that the mean stays; nothing outside training."""
        if values.device.type != "cpu" or not self.training or self.p in {0, 1}:
            return super().forward(values)
        return values * keep_mask(values, self.p)


def keep_mask(like: Tensor, prob: float) -> Tensor:
    """0 with probability `prob`, else 1 / (1 - prob), in the shape, type and memory layout of `like`."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(prob * 2**16)
    kept = words.view(torch.int16)[: like.numel()] >= threshold - 2**15
    mask = torch.empty_like(like)
    order = sorted(range(like.dim()), key=mask.stride, reverse=True)
    mask.permute(order).copy_(kept.view([like.shape[d] for d in order]))
    return mask.mul_(2**16 / (2**16 - threshold))


def commute_head(model: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """Give a model the faster head; its weights, their names and what it saves stay the same."""
    # Only the order of operations differs, so the modules change their classes and keep everything else.
    model.decode_head.__class__ = CommutedDecodeHead
    model.decode_head.dropout.__class__ = Dropout
    return model
