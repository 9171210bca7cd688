"""Hard pixels, the soft IoU over present classes, and the edges of thin classes: each against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fgseg.labels import VOID
from fgseg.losses import TERMS, HybridLoss
from fgseg.losses.cross_entropy import cross_entropy
from fgseg.losses.edge import edge_loss, label_edges
from fgseg.losses.hard_pixels import hard_pixel_cross_entropy
from fgseg.losses.hybrid import Batch
from fgseg.losses.soft_iou import soft_iou, soft_iou_of_batch, soft_iou_of_present

C = 5
THIN = torch.tensor([False, True, False, True, False])


def random_labels(seed: int = 0, void: bool = True) -> Tensor:
    """(2, 12, 16) uint8 labels of three classes in blocks of 4x4 pixels, with some void."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (2, 3, 4), generator=chance).repeat_interleave(4, 1).repeat_interleave(4, 2)
    if void:
        labels[:, :3, :5] = VOID
    return labels.to(torch.uint8)


def random_logits(channels: int = C, seed: int = 1) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, channels, 12, 16, generator=chance)).requires_grad_()


def slope(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


def parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels, zero where the pixel is void."""
    batch = Batch(logits, labels, None)
    return batch.probs, batch.target


def hard_by_definition(logits: Tensor, labels: Tensor, threshold: float, weights: Tensor) -> float:
    """The loss by a loop over the pixels."""
    rows = []
    pixels = logits.detach().log_softmax(1).movedim(1, -1).flatten(0, 2)
    for row, label in zip(pixels, labels.flatten().tolist(), strict=True):
        if label != VOID:
            rows.append((-float(row[label]), float(weights[label])))
    rows.sort(reverse=True)
    least = math.ceil(len(rows) / 16)
    kept = [(loss, w) for k, (loss, w) in enumerate(rows) if k < least or math.exp(-loss) < threshold]
    return sum(loss * w for loss, w in kept) / sum(w for _, w in kept)


@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 5, 2, 1, 1])])
def test_hard_pixels_are_those_below_the_threshold_and_at_least_a_sixteenth(threshold: float, weights: Tensor | None):
    logits, labels = random_logits(), random_labels()
    found = hard_pixel_cross_entropy(logits.log_softmax(1), labels, weights, torch.tensor(threshold))
    expected = hard_by_definition(logits, labels, threshold, torch.ones(C) if weights is None else weights)
    assert found.item() == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_all_pixels_are_hard_below_a_threshold_of_one():
    logits, labels = random_logits(), random_labels()
    found = hard_pixel_cross_entropy(logits.log_softmax(1), labels, None, torch.tensor(1.0))
    torch.testing.assert_close(found, cross_entropy(logits.log_softmax(1), labels, None))


def test_easy_pixels_get_no_gradient():
    logits, labels = random_logits(), random_labels()
    value = hard_pixel_cross_entropy(logits.log_softmax(1), labels, None, torch.tensor(0.3))
    probability = logits.softmax(1).gather(1, torch.where(labels == VOID, 0, labels).long()[:, None])[:, 0]
    got = slope(value, logits).abs().sum(1) > 0
    assert torch.equal(got, (probability < 0.3) & (labels != VOID))


def images_alone(labels: Tensor, logits: Tensor) -> list[float]:
    """One minus the mean Jaccard index of the present classes of each image, by the definition."""
    losses = []
    for probs, target in zip(*parts(logits.detach(), labels), strict=True):
        hits, both = (probs * target).sum((1, 2)), (probs + target - probs * target).sum((1, 2))
        found = [float(hits[c] / both[c]) for c in range(C) if target[c].any()]
        losses.append(1 - sum(found) / len(found))
    return losses


def test_soft_iou_over_present_classes_is_the_mean_of_the_images_means():
    logits, labels = random_logits(), random_labels()
    labels[0][labels[0] == 2] = 1
    expected = images_alone(labels, logits)
    assert soft_iou_of_present(*parts(logits, labels)).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_soft_iou_of_a_batch_is_that_of_its_images_side_by_side():
    logits, labels = random_logits(), random_labels()
    expected = images_alone(torch.cat(list(labels), -1)[None], torch.cat(list(logits), -1)[None])
    assert soft_iou_of_batch(*parts(logits, labels)).item() == pytest.approx(expected[0], rel=1e-5)


def test_soft_iou_of_a_batch_has_the_gradient_of_its_definition():
    logits, labels = random_logits(), random_labels()
    probs, target = parts(logits, labels)
    hits, both = (probs * target).sum((0, 2, 3))[:3], (probs + target - probs * target).sum((0, 2, 3))[:3]
    expected = 1 - (hits / both).mean()
    torch.testing.assert_close(slope(soft_iou_of_batch(probs, target), probs), slope(expected, probs))


def test_absent_classes_count_in_the_soft_iou_of_the_source_only():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target = F.one_hot(labels.long(), C).movedim(-1, 1).float()
    probs = 0.9 * target + 0.1 * target.roll(1, 1)
    assert soft_iou(probs, target).item() == pytest.approx(1 - 3.9 / C, rel=1e-6)
    for value in (soft_iou_of_present(probs, target), soft_iou_of_batch(probs, target)):
        assert value.item() == pytest.approx(0.1, rel=1e-5)


def edges_by_definition(labels: Tensor) -> Tensor:
    """The edges by a loop over pixels and their neighbours."""
    found = torch.zeros(labels.shape, dtype=torch.bool)
    images, height, width = labels.shape
    for n in range(images):
        for y in range(height):
            for x in range(width):
                own = int(labels[n, y, x])
                around = labels[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flatten().tolist()
                others = {label for label in around if label not in (own, VOID)}
                found[n, y, x] = own != VOID and any(THIN[own] or THIN[label] for label in others)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_label_edges_are_where_a_thin_class_meets_another_one(seed: int, dtype: torch.dtype):
    labels = torch.randint(C, (2, 6, 8), generator=torch.Generator().manual_seed(seed)).repeat_interleave(3, 2)
    labels[:, 2, 3:9] = VOID
    assert torch.equal(label_edges(labels.to(dtype), THIN), edges_by_definition(labels))


def test_border_of_the_image_and_void_make_no_edge():
    labels = torch.ones(1, 6, 6, dtype=torch.uint8)
    labels[:, :, 3:] = VOID
    assert not label_edges(labels, THIN).any()


def test_edge_loss_averages_edges_and_other_pixels_apart():
    labels = random_labels()
    logits = random_logits(1)
    edges, valid = label_edges(labels, THIN), labels != VOID
    losses = F.binary_cross_entropy_with_logits(logits[:, 0], edges.float(), reduction="none")
    expected = (losses[edges].mean() + losses[valid & ~edges].mean()) / 2
    torch.testing.assert_close(edge_loss(logits, labels, THIN), expected)
    assert edge_loss(torch.zeros_like(logits), labels, THIN).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 5)])
def test_cell_is_an_edge_if_one_of_its_pixels_is(height: int, width: int):
    labels = torch.full((1, 12, 16), 2, dtype=torch.uint8)
    labels[0, :2, :2] = 1
    labels[0, 8:, 8:] = VOID
    logits = torch.zeros(1, 1, height, width, requires_grad=True)
    gradient = slope(edge_loss(logits, labels, THIN), logits)[0, 0]
    assert gradient[0, 0] == pytest.approx(-0.25)  # the only edge: half the loss, of slope 1/2
    assert gradient[-1, -1] == 0  # void
    assert gradient.sum() == pytest.approx(0, abs=1e-6) and (gradient[1:-1] > 0).all()


@pytest.mark.parametrize("label", [0, 1, VOID])
def test_edge_loss_is_zero_and_flat_without_edges(label: int):
    logits = random_logits(1)
    value = edge_loss(logits, torch.full((2, 12, 16), label, dtype=torch.uint8), THIN)
    assert value.item() == 0 and not slope(value, logits).any()


SETTINGS = [
    {"hard_pixels": 0.7},
    {"soft_iou_over": "present"},
    {"soft_iou_over": "batch"},
    {"hard_pixels": 0.2, "soft_iou_over": "batch"},
]


def seven(*, edge: float = 0.0, **settings: object) -> HybridLoss:
    weights = {"cross_entropy": 1.0, "soft_iou": 0.5, "edge": edge}
    return HybridLoss(weights, thin=[False, True, False, False, True, True, True], **settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_setting_changes_the_loss_it_is_about(settings: dict[str, object]):
    logits, labels = random_logits(7), random_labels()
    _, before = seven()(logits, labels)
    _, after = seven(**settings)(logits, labels)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {{"hard_pixels": "cross_entropy", "soft_iou_over": "soft_iou"}[key] for key in settings}


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_is_zero_and_flat_when_every_pixel_is_void(settings: dict[str, object]):
    logits, edges = random_logits(7), random_logits(1)
    void = torch.full((2, 12, 16), VOID, dtype=torch.uint8)
    total, _ = seven(edge=0.2, **settings)(logits, void, edge_logits=edges)
    assert total.item() == 0
    assert not slope(total, logits).any()


@pytest.mark.parametrize("settings", SETTINGS)
def test_logits_of_void_pixels_get_no_gradient(settings: dict[str, object]):
    logits, labels = random_logits(7), random_labels()
    total, _ = seven(**settings)(logits, labels)
    assert not slope(total, logits).movedim(1, -1)[labels == VOID].any()


def test_edge_term_is_weighted_and_named():
    logits, labels, edges = random_logits(7), random_labels(), random_logits(1)[:, :, ::4, ::4]
    plain, _ = seven()(logits, labels)
    total, terms = seven(edge=0.2)(logits, labels, edge_logits=edges)
    thin = torch.tensor([False, True, False, False, True, True, True])
    torch.testing.assert_close(terms["edge"], edge_loss(edges, labels, thin).detach())
    torch.testing.assert_close(total, plain + 0.2 * terms["edge"])


def test_edge_term_without_edge_logits_or_thin_classes_is_refused():
    with pytest.raises(ValueError, match=r"loss\.edge: got no edge logits"):
        seven(edge=0.2)(random_logits(7), random_labels())
    with pytest.raises(ValueError, match=r"loss\.edge: there are no thin classes"):
        HybridLoss({"cross_entropy": 1, "edge": 0.2})
    with pytest.raises(ValueError, match="no term has a weight above 0"):
        HybridLoss({"edge": 0.2}, thin=[True])
    assert "edge" not in TERMS


def test_mistaken_settings_are_named():
    with pytest.raises(ValueError, match=r"loss\.hard_pixels: got 1\.5, must be in \[0, 1\]"):
        seven(hard_pixels=1.5)
    with pytest.raises(ValueError, match=r"loss\.soft_iou_over: got 'all', must be one of: image, present, batch"):
        seven(soft_iou_over="all")


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_is_float32_under_mixed_precision(settings: dict[str, object]):
    logits, edges = random_logits(7).detach().half().requires_grad_(), random_logits(1).detach().half()
    loss = seven(edge=0.2, **settings)
    expected, _ = loss(logits.float(), random_labels(), None, edges.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = loss(logits, random_labels(), None, edges)
    assert torch.equal(total, expected) and all(value.dtype == torch.float32 for value in terms.values())
