"""Transfer the head of a checkpoint to other classes: group its classes, or fit a row of weights for each new class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput

from fgseg.labels import VOID
from fgseg.model.decode_head import CommutedDecodeHead, commute_head
from fgseg.model.segformer import load_pretrained

ABSENT_LOGIT = -1e4
"""Logit of a class that a checkpoint lacks: probability 0; finite, since logits are interpolated."""
PIXELS_PER_FRAME = 2048
"""Pixels of the fused map drawn from each frame for the fit; 64 frames of the smallest decoder take 130 MB."""
UNSURE_FLOOR = 0.02
"""Weight with which a pixel without doubt is drawn; the weight of others is up to 1 above."""
MAX_ITERATIONS = 60
"""Iterations of L-BFGS."""
DECAY = 1e-6
"""Factor of the squared weights in the fit's loss; makes the solution unique."""
UNKNOWN_SHARE = 0.05
"""Probability, as a share of the background's, with which training begins for a class that a checkpoint lacks."""


@dataclass(frozen=True)
class HeadRows:
    """Weights of a classifier: one row per class, on a fused map of D channels."""

    weight: Tensor
    """(C, D) float32."""
    bias: Tensor
    """(C,) float32."""


def group_logits(logits: Tensor, labels: Sequence[int], classes: int) -> Tensor:
    """Add up the probabilities of a checkpoint's classes that have the same label.

    Args:
        logits: (..., K) of the checkpoint's classes, any floating type.
        labels: label of each of the K classes, in [0, classes), or VOID for a class that is left out.
        classes: C, the number of labels.

    Returns:
        (..., C) float32: logsumexp over the classes of each label; ABSENT_LOGIT for a label without one.
    """
    logits = logits.float()
    absent = torch.full_like(logits[..., 0], ABSENT_LOGIT)
    members = [[k for k, label in enumerate(labels) if label == c] for c in range(classes)]
    return torch.stack([logits[..., m].logsumexp(-1) if m else absent for m in members], -1)


class GroupedModel(nn.Module):
    """A checkpoint with its own classes, which returns the logits of a label set (see `group_logits`).

    Args:
        model: the checkpoint.
        labels: label of each of its classes.
        classes: number of labels.
    """

    def __init__(self, model: SegformerForSemanticSegmentation, labels: Sequence[int], classes: int):
        super().__init__()
        self.model, self.labels, self.classes = model, list(labels), classes

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """Compute logits (B, C, H/4, W/4) float32 from normalised images (B, 3, H, W)."""
        logits = self.model(pixel_values=pixel_values).logits.permute(0, 2, 3, 1)
        return SemanticSegmenterOutput(logits=group_logits(logits, self.labels, self.classes).permute(0, 3, 1, 2))


def load_grouped(folder: Path, labels: Sequence[int], classes: int, where: str = "model.name") -> GroupedModel:
    """Load a checkpoint with its own head, in evaluation mode.

    Args:
        folder: of the checkpoint.
        labels: label of each of its classes.
        classes: number of labels.
        where: setting or argument that names the checkpoint, for messages.

    Raises:
        ConfigError: the weights cannot be loaded, or lack those of the encoder or of the head.
    """
    model = commute_head(load_pretrained(str(folder), where=where))
    return GroupedModel(model, labels, classes).eval()


@torch.no_grad()
def sample_features(
    grouped: GroupedModel, images: Tensor, generator: torch.Generator, count: int = PIXELS_PER_FRAME
) -> tuple[Tensor, Tensor]:
    """Draw pixels of the fused map, unsure ones more often: they decide where the new head puts its boundaries.

    Args:
        grouped: in evaluation mode.
        images: (B, 3, H, W) normalised, on its device.
        generator: of the draw, on the CPU.
        count: pixels drawn from each image, without replacement; all if it has fewer.

    Returns:
        Fused features (P, D) float32, and the logits (P, C) float32 of the grouped classes.
    """
    head = grouped.model.decode_head
    assert isinstance(head, CommutedDecodeHead)
    stages = grouped.model.segformer(images, output_hidden_states=True, return_dict=True).hidden_states
    fused = head.fused_map(list(stages)).permute(0, 2, 3, 1).flatten(1, 2)
    logits = F.linear(fused, head.classifier.weight.flatten(1), head.classifier.bias)
    targets = group_logits(logits, grouped.labels, grouped.classes)
    doubt = 1 - targets.softmax(-1).square().sum(-1) + UNSURE_FLOOR
    drawn = doubt.cpu().multinomial(min(count, doubt.shape[1]), generator=generator).to(fused.device)
    picked = [values.gather(1, drawn[..., None].expand(-1, -1, values.shape[-1])) for values in (fused, targets)]
    return picked[0].flatten(0, 1), picked[1].flatten(0, 1)


def fit_rows(features: Tensor, targets: Tensor, start: HeadRows) -> HeadRows:
    """Fit a classifier so that its softmax equals given probabilities: a convex problem, solved by L-BFGS.

    Args:
        features: (P, D) float32; overwritten.
        targets: (P, C) float32 logits of the wanted probabilities.
        start: initial values, of the same classes.
    """
    probs = targets.softmax(-1)
    weights = probs @ probs.mean(0).clamp_min(1e-6).rsqrt()  # pixels of rare classes count more
    weights /= weights.sum()
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-4)
    features.sub_(centre).div_(scale)  # equal scales, so that few iterations are needed
    weight = (start.weight * scale).requires_grad_()
    bias = (start.bias + start.weight @ centre).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        each = F.cross_entropy(F.linear(features, weight, bias), probs, reduction="none")
        loss = weights @ each + DECAY * weight.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    fitted = weight.detach() / scale
    return HeadRows(fitted, bias.detach() - fitted @ centre)


def copied_rows(grouped: GroupedModel) -> HeadRows:
    """Return the mean of the checkpoint's rows of each label; zeros for a label without one."""
    classifier = grouped.model.decode_head.classifier
    labels = torch.tensor(grouped.labels, device=classifier.weight.device)
    members = (labels == torch.arange(grouped.classes, device=labels.device)[:, None]).to(classifier.weight)
    shares = members / members.sum(1, keepdim=True).clamp_min(1)
    return HeadRows(shares @ classifier.weight.detach().flatten(1), shares @ classifier.bias.detach())


def transfer_rows(grouped: GroupedModel, features: Tensor, targets: Tensor) -> HeadRows:
    """Return a head for the label set that reproduces the grouped probabilities of a checkpoint.

    A label that the checkpoint lacks begins with UNKNOWN_SHARE of the probability of label 0, the background, at every
    pixel; label 0 itself, if the checkpoint lacks it, with that share of the mean row.

    Args:
        grouped: the checkpoint.
        features: (P, D) of `sample_features`; overwritten.
        targets: (P, C) of `sample_features`.
    """
    known = sorted(set(grouped.labels) - {VOID})
    copied = copied_rows(grouped)
    fitted = fit_rows(features, targets[:, known], HeadRows(copied.weight[known], copied.bias[known]))
    origin = [0] if 0 in known else list(range(len(known)))
    weight = fitted.weight[origin].mean(0).repeat(grouped.classes, 1)
    bias = fitted.bias[origin].mean().repeat(grouped.classes) + math.log(UNKNOWN_SHARE)
    weight[known], bias[known] = fitted.weight, fitted.bias
    return HeadRows(weight, bias)


@torch.no_grad()
def set_rows(model: SegformerForSemanticSegmentation, rows: HeadRows) -> None:
    """Replace the classifier's weights of a model with as many classes, in place."""
    classifier = model.decode_head.classifier
    classifier.weight.copy_(rows.weight[..., None, None])
    classifier.bias.copy_(rows.bias)
