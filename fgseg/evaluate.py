"""Judge a model on a split: one (7, 7) confusion matrix per image."""

import torch
from torch import Tensor, nn

from fgseg.batches import eval_batches, normalise
from fgseg.frames import Frames
from fgseg.gpu import usable_bytes
from fgseg.metrics import confusion_counts

CPU_PIXELS, GPU_PIXELS = 2**19, 2**23
"""Pixels judged at a time: on the CPU larger batches leave its caches, on a GPU these fill it."""
BYTES_PER_PIXEL = 2**10
"""What a pixel of a batch takes at most while it is judged, in the larger variants."""


@torch.inference_mode()
def evaluate(model: nn.Module, frames: Frames) -> Tensor:
    """Count pixels by truth and prediction.

    Args:
        model: gives an output with `.logits`; it is put into evaluation mode and left there.
        frames: the split, on the model's device.

    Returns:
        (N, 7, 7) int64 on the CPU, per image, rows truth; their sum is the split's confusion matrix.
    """
    model.eval()
    height, width = frames.size
    pixels = CPU_PIXELS
    if frames.device.type == "cuda":
        pixels = min(GPU_PIXELS, usable_bytes(frames.device) // BYTES_PER_PIXEL)
    counts = []
    for images, labels in eval_batches(frames, max(1, pixels // (height * width))):
        logits = model(pixel_values=normalise(images)).logits
        counts.append(confusion_counts(logits, labels))
    return torch.cat(counts).cpu()
