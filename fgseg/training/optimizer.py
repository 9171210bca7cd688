"""AdamW with its groups of weights, and the schedule of the learning rate."""

import math

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.config.settings import TrainConfig

ENCODER = "segformer."
"""Prefix of the names of the encoder's weights; all others belong to a head."""


def build_optimizer(network: nn.Module, train: TrainConfig) -> AdamW:
    """Build AdamW for the weights of a network, with the learning rate and weight decay of each.

    The heads have `train.head_lr_factor` times the learning rate of the encoder.  Weights of one dimension, which are
    those of norms and biases, do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        rate = train.lr * (1 if name.startswith(ENCODER) else train.head_lr_factor)
        decay = train.weight_decay if weight.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(weight)
    settings = [{"params": weights, "lr": rate, "weight_decay": decay} for (rate, decay), weights in groups.items()]
    return AdamW(settings, lr=train.lr, weight_decay=0.0, fused=True)


def build_schedule(optimizer: AdamW, train: TrainConfig, frames: int) -> LambdaLR:
    """Build the schedule of the learning rate, see `rate_factor`.

    Args:
        optimizer: its learning rates are those after the warm-up.
        train: epochs, batch size, accumulation and warm-up.
        frames: number of training frames.
    """
    steps = count_steps(train, frames)
    warm = int(train.warmup * steps)
    return LambdaLR(optimizer, lambda step: rate_factor(step, steps, warm))


def count_steps(train: TrainConfig, frames: int) -> int:
    """Return the number of optimizer steps of a whole training on `frames` frames."""
    batches = math.ceil(frames / train.batch_size)
    return math.ceil(batches / train.accumulation) * train.epochs


def rate_factor(step: int, steps: int, warm: int) -> float:
    """Return the factor of the learning rate in a step: a linear rise to 1, then a linear fall to 0 at the end.

    Args:
        step: number of steps taken, in [0, steps]; larger ones have 0.
        steps: steps of the whole training.
        warm: steps of the rise, in [0, steps); the first of them has 1 / (warm + 1).
    """
    if step < warm:
        return (step + 1) / (warm + 1)
    return max(0.0, 1 - (step - warm) / (steps - warm))


def lr_to_device(optimizer: AdamW, device: torch.device) -> None:
    """Move the learning rates to the GPU, where a captured step reads them; on the CPU they become plain numbers."""
    for settings in optimizer.param_groups:
        rate = float(settings["lr"])
        settings["lr"] = rate if device.type == "cpu" else torch.tensor(rate, device=device)
