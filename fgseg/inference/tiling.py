"""Inference on model inputs of any size, in overlapping tiles whose logits are blended, and labels of the picture."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgseg.data.batches import normalise
from fgseg.data.geometry import Geometry, Size, round_to_stride
from fgseg.data.windows import sliding_logits


@torch.inference_mode()
def tiled_logits(
    model: nn.Module,
    image: Tensor,
    frame: Size,
    device: str = "cpu",
    window: Size | None = None,
) -> Tensor:
    """Compute the logits of an image, in tiles of the size that the model was trained on if the image is larger.

    Args:
        model: returns an output with `.logits`; on `device`, in evaluation mode.
        image: (3, H, W) uint8 in [0, 255]; sides that are larger than the frame's are multiples of STRIDE_PX.
        frame: height and width of the training frames in pixels.
        device: device of the model, such as `cuda:0`.
        window: height and width of the crops in training; None if the model was trained on whole frames.

    Returns:
        (C, h, w) float32 on the CPU; h and w are a quarter of H and W, rounded up.
    """

    def logits_of(images: Tensor) -> Tensor:
        logits: Tensor = model(pixel_values=normalise(images.to(device))).logits
        return logits.float().cpu()

    if window is None:
        sides = zip(image.shape[1:], frame, strict=True)
        height, width = (limit if side == limit else round_to_stride(limit) for side, limit in sides)
        window = height, width
    return sliding_logits(logits_of, image[None], window)[0]


def without_padding(logits: Tensor, geometry: Geometry, picture: Size) -> Tensor:
    """Cut the part that shows the picture out of the logits of `geometry.whole`.

    Args:
        logits: (C, h, w) float32.
        geometry: of the model's input.
        picture: height and width of the picture in pixels.

    Returns:
        (C, h', w') float32: the logits themselves where nothing was padded; else the logits of each pixel of the
        resized picture, resized bilinearly (align_corners=False).
    """
    height, width = geometry.resized(picture)
    if geometry.fit != "pad" or (height, width) == geometry.size:
        return logits
    wide = F.interpolate(logits[None], size=geometry.size, mode="bilinear", align_corners=False)[0]
    return wide[:, :height, :width]


def labels_at(logits: Tensor, size: Size) -> Tensor:
    """Return the class with the highest logit at each pixel, with memory for one class at a time.

    Args:
        logits: (C, h, w) float32 on the CPU; resized bilinearly to `size` (align_corners=False).
        size: height and width in pixels.

    Returns:
        (H, W) uint8, 0 to C - 1; the lowest class among equal logits.
    """
    best = torch.full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8)
    for label, plane in enumerate(logits):
        wide = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        higher = wide > best
        labels[higher] = label
        best[higher] = wide[higher]
    return labels
