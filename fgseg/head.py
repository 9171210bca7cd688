"""SegFormer's decode head with its linear steps in another order: the same weights, the same function, half the time."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead


class CommutedDecodeHead(SegformerDecodeHead):
    """Fuses each stage at its own resolution, then upsamples and sums.

    The stock head projects the four stages, upsamples all to a quarter of the image, concatenates them and fuses them by
    a 1x1 convolution.  That convolution acts on each stage's channels apart and, being 1x1, commutes with bilinear
    upsampling; so the wide maps need never exist at the full size.  A stage's projection and its part of the fusion are
    one matrix product.
    """

    def forward(self, encoder_hidden_states: list[Tensor], **kwargs: Any) -> Tensor:
        """Turn the encoder's maps, (B, C_i, H_i, W_i) of any floating type, into logits (B, 7, H_0, W_0)."""
        fused = self.fuse(encoder_hidden_states)
        return self.classifier(self.dropout(self.activation(self.batch_norm(fused))))

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """The stock head's fused map (B, D, H_0, W_0)."""
        # The stock head concatenates the stages deepest first.
        parts = self.linear_fuse.weight.flatten(1).chunk(len(stages), dim=1)[::-1]
        total = None
        for stage, part, projection in reversed(list(zip(stages, parts, self.linear_projections, strict=True))):
            weight, bias = part @ projection.proj.weight, part @ projection.proj.bias
            mapped = F.conv2d(stage, weight[:, :, None, None], bias)
            if stage is not stages[0]:
                mapped = F.interpolate(mapped, size=stages[0].shape[-2:], mode="bilinear", align_corners=False)
            total = mapped if total is None else total + mapped
        assert total is not None
        return total


def commute_head(model: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """Give a model the faster head; its weights, their names and what it saves stay the same."""
    # Only the order of operations differs, so the module changes its class and keeps everything else.
    model.decode_head.__class__ = CommutedDecodeHead
    return model
