"""Inference on images of any size: at the scale of training, in overlapping tiles whose logits are blended."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgseg.data.batches import normalise
from fgseg.data.windows import STRIDE_PX, sliding_logits

MIN_STRIDES = 8
"""Side of an image in strides, at least: the deepest stage of a SegFormer has a stride of 32 pixels."""
MAX_ASPECT_ERROR = 0.02
"""Relative difference, at most, for which an image is resized to exactly the size of the training frames."""


def working_size(size: tuple[int, int], frame: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Return the size to which an image is resized for inference: its aspect ratio, just covering a training frame.

    Args:
        size: height and width of the image in pixels.
        frame: height and width of the training frames in pixels.
        scale: additional factor; 2 makes objects twice as large as in training and takes four times the work.

    Returns:
        Height and width in pixels: `frame`, or multiples of STRIDE_PX.
    """
    ratio = scale * max(frame[0] / size[0], frame[1] / size[1])
    height, width = (side * ratio for side in size)
    if all(abs(side - limit) <= MAX_ASPECT_ERROR * limit for side, limit in zip((height, width), frame, strict=True)):
        return frame
    return round_to_stride(height), round_to_stride(width)


def round_to_stride(side: float) -> int:
    """Round a side in pixels to a multiple of STRIDE_PX, at least MIN_STRIDES of them."""
    return max(MIN_STRIDES, round(side / STRIDE_PX)) * STRIDE_PX


@torch.inference_mode()
def tiled_logits(
    model: nn.Module,
    image: Tensor,
    frame: tuple[int, int],
    device: str = "cpu",
    window: tuple[int, int] | None = None,
) -> Tensor:
    """Compute the logits of an image, in tiles of the size that the model was trained on if the image is larger.

    Args:
        model: returns an output with `.logits`; on `device`, in evaluation mode.
        image: (3, H, W) uint8 in [0, 255], of a `working_size`.
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
        whole = (image.shape[1], image.shape[2]) == frame
        window = frame if whole else (round_to_stride(frame[0]), round_to_stride(frame[1]))
    return sliding_logits(logits_of, image[None], window)[0]


def labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
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
