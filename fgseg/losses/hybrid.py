"""The table of loss terms, and their weighted sum."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.labels import NUM_CLASSES, VOID
from fgseg.losses.cross_entropy import cross_entropy
from fgseg.losses.lovasz import lovasz
from fgseg.losses.soft_iou import soft_iou
from fgseg.losses.ssim import ssim


@dataclass
class Batch:
    """What a term may look at; probs and target are made once, by the first term that wants them.

    Attributes:
        logits: (N, 7, H, W) float32, of the labels' size.
        labels: (N, H, W) uint8 or int64, 0-6 or VOID.
        class_weights: (7,) float32, or None where all are 1.
        world: the processes that hold the batch, N frames each.
        share: N over the frames of the whole batch, those not counted that fill it up.
    """

    logits: Tensor
    labels: Tensor
    class_weights: Tensor | None
    world: World = SINGLE_PROCESS
    share: float = 1.0
    # Not functools.cached_property: torch.compile cannot trace the lock that it takes before Python 3.12.
    _probs: Tensor | None = field(default=None, init=False)
    _target: Tensor | None = field(default=None, init=False)

    @property
    def probs(self) -> Tensor:
        """(N, 7, H, W) float32 softmax of the logits, zero where the pixel is void."""
        if self._probs is None:
            self._probs = self.logits.softmax(1) * (self.labels != VOID).unsqueeze(1)
        return self._probs

    @property
    def target(self) -> Tensor:
        """(N, 7, H, W) float32 one-hot labels, zero where the pixel is void."""
        if self._target is None:
            classes = torch.arange(NUM_CLASSES, device=self.labels.device).view(-1, 1, 1)
            self._target = (self.labels.unsqueeze(1) == classes).float()
        return self._target


TERMS: dict[str, Callable[[Batch], Tensor]] = {
    "cross_entropy": lambda batch: cross_entropy(batch.logits, batch.labels, batch.class_weights, batch.world),
    "ssim": lambda batch: batch.share * ssim(batch.probs, batch.target),
    "soft_iou": lambda batch: batch.share * soft_iou(batch.probs, batch.target),
    "lovasz": lambda batch: lovasz(batch.probs, batch.labels, batch.world),
}
"""Each term by its name in settings (`loss.<term>`) and metrics: batch to () float32. A new term is one line here.

With several processes a value is this one's part: the parts add up to the term of the whole batch.
"""


class HybridLoss(nn.Module):
    """Weighted sum of loss terms. Nothing in it waits for the device.

    Source: seed, approach 1 (cross_entropy 1, ssim 0.4, soft_iou 0.5) and approach 3 (cross_entropy 1.1, ssim 0.5,
    lovasz 0.5 and class weights 1, 5, 1, 1, 5, 5, 2).

    Attributes:
        terms: names of the terms that are computed.
        weights: (terms,) float32, their weights.
        class_weights: (7,) float32, or None where all are 1.
    """

    weights: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        weights: Mapping[str, float],
        class_weights: Sequence[float] | None = None,
        world: World = SINGLE_PROCESS,
    ):
        """Choose the terms.

        Args:
            weights: weight of each term, finite and not negative; a term that is left out or has weight 0 is not
                computed. At least one is above 0.
            class_weights: weight of each of the seven classes in cross-entropy, finite and not negative; None: all 1.
            world: the processes that compute the loss together, each of its own frames.

        Raises:
            ValueError: an unknown term, a weight out of range, no term at all, or not seven class weights.
        """
        super().__init__()
        _check_weights(weights)
        self.world = world
        self.terms = tuple(name for name, weight in weights.items() if weight > 0)
        table = None if class_weights is None else torch.tensor(_checked_class_weights(class_weights))
        # Tensors, so that what is compiled for one trial's weights serves every other trial with the same terms. Not
        # part of the state: the run's settings own them, and a checkpoint must load into any of them.
        values = torch.tensor([float(weights[name]) for name in self.terms])
        self.register_buffer("weights", values, persistent=False)
        self.register_buffer("class_weights", table, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, frames: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare predictions with labels, in float32 even under autocast.

        Args:
            logits: (N, 7, h, w), any floating type; resized bilinearly to H x W first (align_corners=False).
            labels: (N, H, W) uint8 or int64, 0-6 or VOID; other values are not looked for, since that would wait for
                the device.
            frames: frames of the whole batch, where several processes share it, N each (see `local_batch`); None: N.

        Returns:
            total: () float32, the weighted sum, to differentiate. Zero with zero gradient when every pixel is void.
            terms: the terms computed, unweighted and detached, each () float32.
            With several processes both are parts: their sums over the processes are those of the whole batch.

        Raises:
            ValueError: ssim is used and H or W is not larger than 5.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if logits.shape[-2:] != labels.shape[-2:]:
                logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            share = len(labels) / (frames or len(labels))
            batch = Batch(logits, labels, self.class_weights, self.world, share)
            terms = {name: TERMS[name](batch) for name in self.terms}
            total = (self.weights * torch.stack(list(terms.values()))).sum()
        return total, {name: value.detach() for name, value in terms.items()}


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in TERMS:
            raise ValueError(f"loss.{name}: no such term; there are: {', '.join(TERMS)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"loss.{name}: got {weight}, must be finite and at least 0")
    if not any(weights.values()):
        raise ValueError(f"loss: no term has a weight above 0; there are: {', '.join(TERMS)}")


def _checked_class_weights(class_weights: Sequence[float]) -> list[float]:
    values = [float(weight) for weight in class_weights]
    if len(values) != NUM_CLASSES or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"class_weights: got {values}, must be {NUM_CLASSES} finite numbers of at least 0")
    return values
