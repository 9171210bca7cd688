"""The forward pass from uint8 images to logits, as Accelerate prepares it and as torch.compile takes it."""

from collections.abc import Callable, Sequence
from copy import deepcopy

from torch import Tensor, nn

from fgseg.data.batches import normalise
from fgseg.model.edge_head import Prediction, SegformerWithEdges


class Network(nn.Module):
    """A model whose input is uint8 images; its forward pass may be replaced by compiled code.

    Attributes:
        model: a SegFormer, or a SegformerWithEdges.
        predict: computes a Prediction from the model and images.
    """

    def __init__(self, model: nn.Module):
        """Share the weights of a model; the forward pass is that of Transformers."""
        super().__init__()
        self.model = model
        self.predict: Callable[[nn.Module, Tensor], Prediction] = predict

    def forward(self, images: Tensor) -> Prediction:
        """Compute the logits of images (B, 3, H, W) uint8; h and w are a quarter of H and W."""
        return self.predict(self.model, images)


def predict(model: nn.Module, images: Tensor) -> Prediction:
    """Compute the logits of images (B, 3, H, W) uint8 by the forward pass of Transformers."""
    output = model(pixel_values=normalise(images))
    return Prediction(output.logits, getattr(output, "edge_logits", None))


def encode(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute the maps (B, C_i, H_i, W_i) of the encoder's stages for images (B, 3, H, W) uint8.

    The maps stay channels-last: they are views of the tokens (B, H_i W_i, C_i), where Transformers (5.17 to 5.23)
    copies each to NCHW and the next convolution copies it back.
    """
    current, maps = normalise(images), []
    for stage in model.get_submodule("segformer.stages").children():
        tokens, height, width = stage.get_submodule("patch_embeddings")(current)
        for block in stage.get_submodule("blocks").children():
            tokens = block(tokens, height, width)
        tokens = stage.get_submodule("layer_norm")(tokens)
        current = tokens.reshape(len(images), height, width, -1).permute(0, 3, 1, 2)
        maps.append(current)
    return maps


def decode(model: nn.Module, maps: Sequence[Tensor]) -> Prediction:
    """Compute the logits from the maps of the encoder's stages."""
    if isinstance(model, SegformerWithEdges):
        return model.predict(list(maps))
    return Prediction(model.get_submodule("decode_head")(list(maps)))


def predict_traceable(model: nn.Module, images: Tensor) -> Prediction:
    """Compute what `predict` computes, in a form that torch.compile traces as one graph."""
    return decode(model, encode(model, images))


def without_hooks(model: nn.Module) -> nn.Module:
    """Return a copy of a model that has not run yet, with the same tensors as weights and buffers.

    In the first forward pass Transformers (5.23) adds hooks to the stages and attentions of the original.
    torch.compile splits its graph at each hook, and compiles again for a model that does not have them yet.
    """
    return deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
