"""Judge a model on a split: one (7, 7) confusion matrix per image."""

import torch
from torch import Tensor, nn

from fgseg.batches import eval_batches, normalise
from fgseg.data import FrameSet
from fgseg.metrics import confusion_counts

BATCH_SIZE = 8


@torch.inference_mode()
def evaluate(model: nn.Module, frames: FrameSet, device: torch.device) -> Tensor:
    """Count pixels by truth and prediction.

    Args:
        model: gives an output with `.logits`; it is put into evaluation mode and left there.
        frames: the split.
        device: where the model is.

    Returns:
        (N, 7, 7) int64 on the CPU, per image, rows truth; their sum is the split's confusion matrix.
    """
    model.eval()
    counts = []
    for images, labels in eval_batches(frames, BATCH_SIZE, device):
        logits = model(pixel_values=normalise(images)).logits
        counts.append(confusion_counts(logits, labels))
    return torch.cat(counts).cpu()
