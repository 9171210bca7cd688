"""The table of loss terms and their weighted sum, `HybridLoss`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fgseg.distributed import SINGLE_PROCESS, World
from fgseg.interpolation import upsample
from fgseg.labels import VOID
from fgseg.losses.cross_entropy import cross_entropy
from fgseg.losses.edge import edge_loss
from fgseg.losses.hard_pixels import hard_pixel_cross_entropy
from fgseg.losses.lovasz import lovasz
from fgseg.losses.soft_iou import soft_iou, soft_iou_of_batch, soft_iou_of_present
from fgseg.losses.ssim import ssim


@dataclass
class Batch:
    """The input of a loss term; `log_probs`, `probs` and `target` are computed on first use and shared by the terms.

    Attributes:
        logits: (N, C, H, W) float32.
        labels: (N, H, W) uint8 or int64, 0 to C - 1 or VOID.
        class_weights: (C,) float32, or None if all are 1.
        world: the processes that share the batch, N frames each.
        share: N divided by the frames of the whole batch; void frames that pad the batch are not counted in the latter.
        hard_pixels: () float32, the setting `loss.hard_pixels`, or None if it is off.
        soft_iou_over: the setting `loss.soft_iou_over`.
        edge_logits: (N, 1, h, w) float32 of the edge head, or None without one.
        thin: (C,) bool, whether a class is thin; needed beside `edge_logits`.
    """

    logits: Tensor
    labels: Tensor
    class_weights: Tensor | None
    world: World = SINGLE_PROCESS
    share: float = 1.0
    hard_pixels: Tensor | None = None
    soft_iou_over: str = "image"
    edge_logits: Tensor | None = None
    thin: Tensor | None = None
    # Not functools.cached_property: before Python 3.12 it takes a lock, which torch.compile cannot trace.
    _log_probs: Tensor | None = field(default=None, init=False)
    _probs: Tensor | None = field(default=None, init=False)
    _target: Tensor | None = field(default=None, init=False)

    @property
    def log_probs(self) -> Tensor:
        """Log-softmax of the logits, (N, C, H, W) float32."""
        if self._log_probs is None:
            self._log_probs = self.logits.log_softmax(1)
        return self._log_probs

    @property
    def probs(self) -> Tensor:
        """Softmax of the logits, (N, C, H, W) float32 in [0, 1]; zero where the pixel is void."""
        if self._probs is None:
            self._probs = self.log_probs.exp() * (self.labels != VOID).unsqueeze(1)
        return self._probs

    @property
    def target(self) -> Tensor:
        """One-hot labels, (N, C, H, W) float32; zero where the pixel is void."""
        if self._target is None:
            classes = torch.arange(self.logits.shape[1], device=self.labels.device).view(-1, 1, 1)
            self._target = (self.labels.unsqueeze(1) == classes).float()
        return self._target


def cross_entropy_term(batch: Batch) -> Tensor:
    """Compute the cross-entropy of all pixels, or of the hard ones if `hard_pixels` is set; () float32."""
    if batch.hard_pixels is None:
        return cross_entropy(batch.log_probs, batch.labels, batch.class_weights, batch.world)
    return hard_pixel_cross_entropy(batch.log_probs, batch.labels, batch.class_weights, batch.hard_pixels, batch.world)


SOFT_IOU: dict[str, Callable[[Batch], Tensor]] = {
    "image": lambda batch: batch.share * soft_iou(batch.probs, batch.target),
    "present": lambda batch: batch.share * soft_iou_of_present(batch.probs, batch.target),
    "batch": lambda batch: soft_iou_of_batch(batch.probs, batch.target, batch.world),
}
"""The soft IoU by the setting `loss.soft_iou_over`."""

TERMS: dict[str, Callable[[Batch], Tensor]] = {
    "cross_entropy": cross_entropy_term,
    "ssim": lambda batch: batch.share * ssim(batch.probs, batch.target),
    "soft_iou": lambda batch: SOFT_IOU[batch.soft_iou_over](batch),
    "lovasz": lambda batch: lovasz(batch.probs, batch.labels, batch.world),
}
"""Each term by its name in settings (`loss.<term>`) and metrics: batch to () float32. A new term is one line here.

With several processes each returns its own summand: their sum over the processes is the term of the whole batch.
"""
EDGE = "edge"
"""Name of the term of the edge head, which does not depend on the logits of the classes."""


class HybridLoss(nn.Module):
    """Weighted sum of loss terms. Does not synchronise with the GPU.

    Source: seed, approach 1 (cross_entropy 1, ssim 0.4, soft_iou 0.5) and approach 3 (cross_entropy 1.1, ssim 0.5,
    lovasz 0.5 and class weights 1, 5, 1, 1, 5, 5, 2).

    Attributes:
        terms: names of the T terms that are computed.
        weights: (T,) float32, weights of these terms.
        class_weights: (C,) float32, or None if all are 1.
        hard_pixels: () float32, or None if cross-entropy counts all pixels.
        thin: (C,) bool, or None if the edge term is not computed.
    """

    weights: Tensor
    class_weights: Tensor | None
    hard_pixels: Tensor | None
    thin: Tensor | None

    def __init__(
        self,
        weights: Mapping[str, float],
        class_weights: Sequence[float] | None = None,
        world: World = SINGLE_PROCESS,
        *,
        hard_pixels: float = 0.0,
        soft_iou_over: str = "image",
        thin: Sequence[bool] | None = None,
    ):
        """Create the loss of the given term weights.

        Args:
            weights: weight of each term, finite and not negative, at least one besides `edge` above 0; a term that is
                missing or has weight 0 is not computed.
            class_weights: weight of each of the C classes in cross-entropy, finite and not negative; None: all 1.
            world: the processes that share each batch; each computes the loss of its own frames.
            hard_pixels: the setting `loss.hard_pixels`, in [0, 1].
            soft_iou_over: the setting `loss.soft_iou_over`.
            thin: whether each class is thin; must be given if the weight of `edge` is above 0.

        Raises:
            ValueError: an unknown term, a weight or setting out of range, no weight above 0, a wrong class weight, or
                an edge term without thin classes.
        """
        super().__init__()
        _check_weights(weights)
        if weights.get(EDGE) and not any(thin or ()):
            raise ValueError("loss.edge: there are no thin classes, whose edges it is about; set it to 0")
        if not 0 <= hard_pixels <= 1:
            raise ValueError(f"loss.hard_pixels: got {hard_pixels}, must be in [0, 1]")
        if soft_iou_over not in SOFT_IOU:
            raise ValueError(f"loss.soft_iou_over: got {soft_iou_over!r}, must be one of: {', '.join(SOFT_IOU)}")
        self.world, self.soft_iou_over = world, soft_iou_over
        self.terms = tuple(name for name, weight in weights.items() if weight > 0)
        table = None if class_weights is None else torch.tensor(_checked_class_weights(class_weights))
        # Tensors, so that a step compiled for one trial's weights is reused by trials with the same terms. Not
        # persistent, so that a checkpoint loads into a loss of any weights; those come from the settings.
        values = torch.tensor([float(weights[name]) for name in self.terms])
        self.register_buffer("weights", values, persistent=False)
        self.register_buffer("class_weights", table, persistent=False)
        self.register_buffer("hard_pixels", torch.tensor(float(hard_pixels)) if hard_pixels else None, persistent=False)
        self.register_buffer("thin", torch.tensor(thin) if weights.get(EDGE) else None, persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, frames: int | None = None, edge_logits: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of predictions, in float32 even under autocast.

        Args:
            logits: (N, C, h, w), any floating type; resized bilinearly to H x W first (align_corners=False).
            labels: (N, H, W) uint8 or int64, 0 to C - 1 or VOID; other values are not detected, since a check would
                synchronise with the GPU.
            frames: frames of the whole batch if several processes share it, without those that pad it (see
                `fgseg.distributed.local_batch`); None means N.
            edge_logits: (N, 1, h, w) of the edge head, any floating type; must be given if the weight of `edge` is
                above 0.

        Returns:
            total: () float32, the weighted sum, differentiable. Zero with zero gradient when every pixel is void.
            terms: the terms computed, unweighted and detached, each () float32.
            With several processes both are summands: their sums over the processes are those of the whole batch.

        Raises:
            ValueError: ssim is used and H or W is not larger than 5, or the edge logits are missing.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if logits.shape[-2:] != labels.shape[-2:]:
                logits = upsample(logits, (labels.shape[-2], labels.shape[-1]))
            batch = Batch(
                logits,
                labels,
                self.class_weights,
                self.world,
                share=len(labels) / (frames or len(labels)),
                hard_pixels=self.hard_pixels,
                soft_iou_over=self.soft_iou_over,
                edge_logits=None if edge_logits is None else edge_logits.float(),
                thin=self.thin,
            )
            terms = {name: _edge_term(batch) if name == EDGE else TERMS[name](batch) for name in self.terms}
            total = (self.weights * torch.stack(list(terms.values()))).sum()
        return total, {name: value.detach() for name, value in terms.items()}


def _edge_term(batch: Batch) -> Tensor:
    if batch.edge_logits is None or batch.thin is None:
        raise ValueError("loss.edge: got no edge logits; the model needs an edge head")
    return edge_loss(batch.edge_logits, batch.labels, batch.thin, batch.world)


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in (*TERMS, EDGE):
            raise ValueError(f"loss.{name}: no such term; there are: {', '.join((*TERMS, EDGE))}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"loss.{name}: got {weight}, must be finite and at least 0")
    if not any(weight for name, weight in weights.items() if name != EDGE):
        raise ValueError(f"loss: no term has a weight above 0; there are: {', '.join(TERMS)}")


def _checked_class_weights(class_weights: Sequence[float]) -> list[float]:
    values = [float(weight) for weight in class_weights]
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"class_weights: got {values}, must be finite numbers of at least 0")
    return values
