"""The auxiliary edge head, with which a SegFormer is trained, and which is neither evaluated nor exported."""

from typing import NamedTuple

from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation

from fgseg.model.decode_head import CommutedDecodeHead


class Prediction(NamedTuple):
    """Logits of the classes, (B, C, h, w), and of the edges, (B, 1, h, w), or None without an edge head."""

    logits: Tensor
    edge_logits: Tensor | None = None


class SegformerWithEdges(nn.Module):
    """A SegFormer, and a 1x1 convolution of one channel on the map that its decode head fuses.

    Encoder and decode head are those of the model, under the same names.

    Source: Xu, Xiong and Bhattacharyya, "PIDNet", CVPR 2023 (the loss is in fgseg/losses/edge.py).
    """

    def __init__(self, model: SegformerForSemanticSegmentation):
        """Share the weights of a model and draw those of the edge head; `model.decode_head` is a CommutedDecodeHead."""
        super().__init__()
        self.segformer, self.decode_head = model.segformer, model.decode_head
        self.edge_head = nn.Conv2d(model.config.decoder_hidden_size, 1, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> Prediction:
        """Compute the logits of normalised images (B, 3, H, W) float32; h and w are a quarter of H and W."""
        return self.predict(self.segformer(pixel_values, output_hidden_states=True).hidden_states)

    def predict(self, stages: list[Tensor]) -> Prediction:
        """Compute the logits from the encoder's maps (B, C_i, H_i, W_i)."""
        head = self.decode_head
        assert isinstance(head, CommutedDecodeHead)
        fused = head.fused_map(stages)
        return Prediction(head.classify(fused), self.edge_head(fused))
