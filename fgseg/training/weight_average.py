"""Exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of the weights of a model that is trained.

    The decay of step t is min(decay, (1 + t) / (10 + t)): at first the average follows the weights quickly, so that it
    does not remember the initial ones for long.

    Attributes:
        model: a copy of the model that has the averaged weights.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the decay of early steps
    is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start the average at the model's present weights.

        Args:
            model: on its device, not yet prepared by Accelerate, which replaces its `forward`.
            decay: in (0, 1).
        """
        self.source, self.decay = model, decay
        self.model = deepcopy(model).requires_grad_(False)

    def update(self, step: int) -> None:
        """Include the weights after an optimizer step, which is counted from 1.  Does not wait for the device."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average(list(self.model.parameters()), list(self.source.parameters()), 0)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copy the statistics of batch norm, which are averages already."""
        for own, current in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(current)
