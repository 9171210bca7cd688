"""Judge a model on a split, one (7, 7) confusion matrix per image; and predict frames in the same way."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fgseg.data.batches import eval_batches, normalise
from fgseg.data.device_frames import Frames
from fgseg.devices import usable_bytes
from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.metrics.iou import confusion_counts, predicted_labels

CPU_PIXELS, GPU_PIXELS = 2**19, 2**23
"""Pixels judged at a time: on the CPU larger batches leave its caches, on a GPU these fill it."""
BYTES_PER_PIXEL = 2**10
"""What a pixel of a batch takes at most while it is judged, in the larger variants."""


def evaluate(model: nn.Module, frames: Frames, world: World = SINGLE_PROCESS) -> Tensor:
    """Count pixels by truth and prediction.

    Args:
        model: gives an output with `.logits`; it is put into evaluation mode and left there.
        frames: the split, on the model's device.
        world: the processes that share the split; each evaluates the frames rank, rank + world_size, ..., of which
            there must be one.

    Returns:
        (N, 7, 7) int64 on the CPU, for each of this process's images, rows truth; their sum over images (and processes)
        is the split's confusion matrix.
    """
    return confusion_per_image(model, frames, confusion_counts, world=world)[0]


@torch.inference_mode()
def confusion_per_image(
    model: nn.Module, frames: Frames, *counters: Callable[[Tensor, Tensor], Tensor], world: World = SINGLE_PROCESS
) -> list[Tensor]:
    """What several counters find in every frame, the model being asked once.

    Args:
        model: as for `evaluate`.
        frames: as for `evaluate`.
        counters: each is given logits (B, 7, h, w) and labels (B, H, W), and returns (B, ...) counts.
        world: as for `evaluate`.

    Returns:
        For each counter (N, ...) on the CPU.
    """
    model.eval()
    found: list[list[Tensor]] = [[] for _ in counters]
    for images, labels in eval_batches(frames, batch_size(frames.size, frames.device), world):
        logits = model(pixel_values=normalise(images)).logits
        for counts, counter in zip(found, counters, strict=True):
            counts.append(counter(logits, labels))
    return [torch.cat(counts).cpu() for counts in found]


@torch.inference_mode()
def predict_labels(model: nn.Module, images: Tensor) -> Tensor:
    """The labels that `evaluate` would count; how many images are given changes neither them nor the memory needed.

    Args:
        model: as for `evaluate`.
        images: (B, 3, H, W) uint8 on any device, B >= 1; they are sent to the model's, some at a time.

    Returns:
        (B, H, W) uint8 on the CPU, 0-6.
    """
    model.eval()
    device = next(model.parameters()).device
    size = (images.shape[-2], images.shape[-1])
    parts = [
        predicted_labels(model(pixel_values=normalise(batch.to(device))).logits, size).to(torch.uint8).cpu()
        for batch in images.split(batch_size(size, device))
    ]
    return torch.cat(parts)


def batch_size(size: tuple[int, int], device: torch.device) -> int:
    """How many frames of this height and width are judged at a time."""
    pixels = CPU_PIXELS
    if device.type == "cuda":
        pixels = min(GPU_PIXELS, usable_bytes(device) // BYTES_PER_PIXEL)
    return max(1, pixels // (size[0] * size[1]))
