"""Evaluate a model on a split, with one (C, C) confusion matrix per image, and predict labels of images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fgseg.data.batches import eval_batches, normalise
from fgseg.data.device_frames import Frames
from fgseg.data.windows import sliding_logits
from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.gpu_memory import gpu_memory
from fgseg.metrics.iou import confusion_counts, predicted_labels

CPU_BATCH_PX = 2**19
"""Pixels of an evaluation batch on the CPU: larger batches leave its caches."""


def evaluate(
    model: nn.Module, frames: Frames, world: World = SINGLE_PROCESS, window: tuple[int, int] | None = None
) -> Tensor:
    """Count the pixels of each image by true and predicted class.

    Args:
        model: returns an output with `.logits` (B, C, h, w); it is left in evaluation mode.
        frames: the split, on the model's device.
        world: the processes that share the split; rank r evaluates the frames r, r + world_size, ..., at least one.
        window: height and width in pixels of the window that slides over the frames (see `sliding_logits`), the size of
            the training crops; None evaluates whole frames.

    Returns:
        (N, C, C) int64 on the CPU for the N images of this process, rows truth, columns prediction. The sum over images
        and processes is the confusion matrix of the split.
    """
    return confusion_per_image(model, frames, confusion_counts, world=world, window=window)[0]


@torch.inference_mode()
def confusion_per_image(
    model: nn.Module,
    frames: Frames,
    *counters: Callable[[Tensor, Tensor], Tensor],
    world: World = SINGLE_PROCESS,
    window: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Apply several counters to the predictions of every frame, with one forward pass per frame.

    Args:
        model: as for `evaluate`.
        frames: as for `evaluate`.
        counters: functions of logits (B, C, h, w) and labels (B, H, W) that return counts (B, ...).
        world, window: as for `evaluate`.

    Returns:
        For each counter its counts (N, ...) on the CPU.
    """
    model.eval()
    results: list[list[Tensor]] = [[] for _ in counters]
    for images, labels in eval_batches(frames, batch_size(frames.size, frames.device), world):
        logits = logits_of(model, images, window)
        for counts, counter in zip(results, counters, strict=True):
            counts.append(counter(logits, labels))
    return [torch.cat(counts).cpu() for counts in results]


@torch.inference_mode()
def predict_labels(model: nn.Module, images: Tensor, window: tuple[int, int] | None = None) -> Tensor:
    """Predict the labels that `evaluate` counts, in batches of `batch_size` images.

    Args:
        model: as for `evaluate`.
        images: (B, 3, H, W) uint8 in [0, 255] on any device, B >= 1; copied to the model's device batch by batch.
        window: as for `evaluate`.

    Returns:
        (B, H, W) uint8 on the CPU, 0 to C - 1.
    """
    model.eval()
    device = next(model.parameters()).device
    size = (images.shape[-2], images.shape[-1])
    parts = [
        predicted_labels(logits_of(model, batch.to(device), window), size).to(torch.uint8).cpu()
        for batch in images.split(batch_size(size, device))
    ]
    return torch.cat(parts)


def logits_of(model: nn.Module, images: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Compute logits (B, C, h, w) of images (B, 3, H, W) uint8 on the model's device, in a window if one is given."""
    return sliding_logits(
        lambda part: model(pixel_values=normalise(part)).logits, images, window or (images.shape[-2], images.shape[-1])
    )


def batch_size(size: tuple[int, int], device: torch.device) -> int:
    """Return the frames per evaluation batch, at least 1, for frames of `size` (height, width) in pixels."""
    pixels = gpu_memory(device).evaluation_px() if device.type == "cuda" else CPU_BATCH_PX
    return max(1, pixels // (size[0] * size[1]))
