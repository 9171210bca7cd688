"""The loss terms against the source's reference values, and one contract that every term keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from thin_street import NUM_CLASSES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fgseg.labels import VOID
from fgseg.losses import TERMS, HybridLoss
from fgseg.losses.cross_entropy import cross_entropy
from fgseg.losses.hybrid import Batch
from fgseg.losses.lovasz import lovasz
from fgseg.losses.soft_iou import soft_iou
from fgseg.losses.ssim import direct_ssim, ssim

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
CLASS_WEIGHTS = (1, 5, 1, 1, 5, 5, 2)
FAMILIES = {
    "bas": HybridLoss({"cross_entropy": 1, "ssim": 0.4, "soft_iou": 0.5}),
    "slc": HybridLoss({"cross_entropy": 1.1, "ssim": 0.5, "lovasz": 0.5}, CLASS_WEIGHTS),
}
# SSIM subtracts moments near 1 (float32 steps: 6e-8) and divides by C2 = 9e-4, so every order of summation has its own
# error: per pixel up to 1e-4, in the mean a few 1e-6. It shows only where the loss itself is that small, as in
# nearly_right: there the reference is 4e-6 from float64 in value, and its own value moves by
# float32 steps of 1 (6e-8) with the number of threads, which is 1.4e-4 of the slc total.
ROUNDING = 5e-6
THREADS = 1.2e-7
golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
every_term = pytest.mark.parametrize("name", TERMS)


def read(path: Path) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
    with np.load(path) as case:
        values = dict(case)
    return torch.tensor(values["logits"], requires_grad=True), torch.tensor(values["labels"]), values


def blocks(void: bool = False) -> Tensor:
    """(2, 16, 28) uint8 labels of all seven classes, four columns each; with void in a corner where asked."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(4).expand(2, 16, 28).to(torch.uint8).clone()
    if void:
        labels[:, :6, :9] = VOID
    return labels


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def evaluate(name: str, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    return TERMS[name](Batch(logits, labels, class_weights))


def slope(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


def test_reference_files_are_all_there():
    assert {path.stem for path in GOLDEN} == {
        "absent_classes", "ignored", "nearly_right", "one_class", "same_size", "upsampled"
    }  # fmt: skip


@golden
@pytest.mark.parametrize(
    ("family", "term", "key"),
    [
        ("bas", "cross_entropy", "ce"),
        ("bas", "ssim", "ssim"),
        ("bas", "soft_iou", "iou"),
        ("slc", "cross_entropy", "weighted_ce"),
        ("slc", "ssim", "ssim"),
        ("slc", "lovasz", "lovasz"),
    ],
)
def test_term_agrees_with_the_source(path: Path, family: str, term: str, key: str):
    logits, labels, values = read(path)
    _, terms = FAMILIES[family](logits, labels)
    floor = THREADS if (path.stem, term) == ("nearly_right", "ssim") else 0
    assert terms[term].item() == pytest.approx(float(values[key]), rel=1e-5, abs=floor)


@golden
@pytest.mark.parametrize("family", FAMILIES)
def test_total_and_gradient_agree_with_the_source(path: Path, family: str):
    logits, labels, values = read(path)
    total, _ = FAMILIES[family](logits, labels)
    floor = THREADS if path.stem == "nearly_right" else 0
    assert total.item() == pytest.approx(float(values[family]), rel=1e-5, abs=floor)
    expected = torch.tensor(values[f"{family}_grad"])
    assert (slope(total, logits) - expected).norm() <= 1e-4 * expected.norm()


@golden
def test_fast_ssim_agrees_with_the_direct_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    logits, labels, _ = read(path)
    batch = Batch(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels, None)
    expected = direct_ssim(batch.probs, batch.target)
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", 0)
    value = ssim(batch.probs, batch.target)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=ROUNDING)
    by_direct = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    # In nearly_right this gradient is rounding in good part: the reference's own, of norm 1.4e-6, is 1e-7 from float64.
    floor = 2e-7 if path.stem == "nearly_right" else 0
    assert (slope(value, logits) - by_direct).norm() <= 1e-4 * by_direct.norm() + floor


def test_fast_ssim_of_a_nearly_right_prediction_is_as_near_to_float64_as_the_reference_is(
    monkeypatch: pytest.MonkeyPatch,
):
    logits, labels, values = read(next(path for path in GOLDEN if path.stem == "nearly_right"))
    batch = Batch(logits, labels, None)
    exact = direct_ssim(batch.probs.double(), batch.target.double()).item()
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", 0)
    assert abs(ssim(batch.probs, batch.target).item() - exact) <= abs(float(values["ssim"]) - exact)


@every_term
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_term_is_a_finite_float32_scalar_that_is_not_negative(name: str, dtype: torch.dtype):
    value = evaluate(name, random_logits(2, 7, 16, 28), blocks(void=True).to(dtype))
    assert value.dtype == torch.float32 and value.shape == ()
    assert torch.isfinite(value) and value >= 0


@every_term
def test_term_is_zero_and_flat_when_every_pixel_is_void(name: str):
    logits = random_logits(2, 7, 16, 28)
    value = evaluate(name, logits, torch.full((2, 16, 28), VOID, dtype=torch.uint8))
    assert value.item() == 0
    assert torch.equal(slope(value, logits), torch.zeros_like(logits))


@every_term
def test_term_is_near_zero_for_a_confident_right_prediction(name: str):
    labels = blocks(void=True)
    logits = 50 * Batch(torch.empty(0, NUM_CLASSES), labels, None).target
    # float32 rounding: 1e-7 for three terms, SSIM's floor for the fourth
    assert evaluate(name, logits, labels).item() == pytest.approx(0, abs=ROUNDING)


@every_term
def test_term_falls_along_its_gradient(name: str):
    logits, labels = random_logits(2, 7, 16, 28), blocks(void=True)
    before = evaluate(name, logits, labels)
    step = slope(before, logits)
    after = evaluate(name, logits - step / step.norm(), labels)
    # the gradient has norm g, so a step of length 1 gains g to first order; half leaves room for curvature
    assert before - after > 0.5 * step.norm()


@every_term
def test_logits_of_void_pixels_get_no_gradient(name: str):
    logits, labels = random_logits(2, 7, 16, 28), blocks(void=True)
    gradient = slope(evaluate(name, logits, labels), logits).movedim(1, -1)
    assert torch.equal(gradient[labels == VOID], torch.zeros_like(gradient[labels == VOID]))
    assert (gradient[labels != VOID].abs().sum(-1) > 0).all()


@every_term
def test_logits_of_void_pixels_do_not_change_the_term(name: str):
    logits, labels = random_logits(2, 7, 16, 28).detach(), blocks(void=True)
    other = torch.where((labels == VOID).unsqueeze(1), 9 * random_logits(2, 7, 16, 28, seed=1).detach(), logits)
    # the same numbers, in another order of summation where void pixels are sorted
    torch.testing.assert_close(evaluate(name, logits, labels), evaluate(name, other, labels), rtol=1e-6, atol=0)


@every_term
def test_logits_and_labels_change_the_term(name: str):
    value = evaluate(name, random_logits(2, 7, 16, 28), blocks())
    assert evaluate(name, random_logits(2, 7, 16, 28, seed=1), blocks()) != value
    assert evaluate(name, random_logits(2, 7, 16, 28), blocks().flip(-1)) != value


def test_only_cross_entropy_looks_at_class_weights():
    logits, labels, weights = random_logits(2, 7, 16, 28), blocks(), torch.tensor(CLASS_WEIGHTS, dtype=torch.float32)
    changed = {name for name in TERMS if evaluate(name, logits, labels, weights) != evaluate(name, logits, labels)}
    assert changed == {"cross_entropy"}


def test_cross_entropy_is_torchs_weighted_mean():
    logits, labels = random_logits(2, 7, 16, 28), blocks(void=True)
    weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float32)
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits.log_softmax(1), labels, weights), expected)


def test_soft_iou_counts_classes_that_an_image_lacks():
    target = F.one_hot(torch.zeros(1, 8, 8, dtype=torch.int64), 7).movedim(-1, 1).float()
    probs = 0.9 * target + 0.1 * target.roll(1, 1)
    # the present class has IoU 0.9, one absent class has probability, the other five are empty and have IoU 1
    assert soft_iou(probs, target).item() == pytest.approx(1 - 5.9 / 7, rel=1e-6)


def test_soft_iou_smooths_by_eps():
    target = torch.ones(1, 1, 1, 1)
    assert soft_iou(0 * target, target, eps=1.0).item() == pytest.approx(0.5)


def test_lovasz_is_one_minus_iou_for_hard_predictions():
    labels, shifted = blocks(), blocks().roll(1, -1)
    hard = F.one_hot(shifted.long(), 7).movedim(-1, 1).float()
    # each class is four columns wide and predicted one column off: 3 columns shared, 5 covered
    assert lovasz(hard, labels).item() == pytest.approx(1 - 3 / 5, rel=1e-6)


def test_lovasz_sums_the_classes_present_and_divides_by_seven():
    probs = torch.full((1, 7, 8, 8), 1 / 7)
    labels = torch.full((1, 8, 8), 2, dtype=torch.uint8)
    assert lovasz(probs, labels).item() == pytest.approx(6 / 7 / 7, rel=1e-6)


class Operations(TorchDispatchMode):
    """Collects the names of the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_lovasz_on_a_gpu_is_one_operator():
    """Inductor of torch 2.11 fails to generate the running sum over the pixels of a class for a GPU."""
    with FakeTensorMode(), Operations() as found:
        labels = torch.empty(2, 16, 32, dtype=torch.uint8, device="cuda")
        TERMS["lovasz"](Batch(torch.empty(2, 7, 16, 32, device="cuda"), labels, None))
    assert "fgseg::jaccard_steps" in found.names
    assert not any("cumsum" in name or "sort" in name for name in found.names)


def test_lovasz_takes_the_batch_as_one_set():
    probs, labels = random_logits(2, 7, 16, 28).softmax(1), blocks(void=True)
    side_by_side = torch.cat(list(probs), -1)[None], torch.cat(list(labels), -1)[None]
    torch.testing.assert_close(lovasz(probs, labels), lovasz(*side_by_side))


@pytest.mark.parametrize(("height", "width"), [(6, 7), (40, 150)])
def test_ssim_and_its_gradient_are_those_of_the_formula(height: int, width: int):
    """In float64, where no rounding hides a mistake; the second size spans several blocks of the window's band."""
    probs = random_logits(2, 7, height, width).double().softmax(1).detach().requires_grad_()
    labels = torch.randint(0, 7, (2, height, width), generator=torch.Generator().manual_seed(2))
    target = F.one_hot(labels, 7).movedim(-1, 1).double()
    value, expected = ssim(probs, target), direct_ssim(probs, target)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(slope(value, probs), slope(expected, probs), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("planes", [1, 3, 100])
def test_ssim_does_not_depend_on_how_many_planes_are_treated_at_a_time(planes: int, monkeypatch):
    batch = Batch(random_logits(2, 7, 16, 28), blocks(), None)
    expected = ssim(batch.probs, batch.target)
    monkeypatch.setattr("fgseg.losses.ssim_banded.CPU_CHUNK_VALUES", planes * 16 * 28)
    torch.testing.assert_close(ssim(batch.probs, batch.target), expected)


@pytest.mark.parametrize(("height", "width"), [(5, 20), (20, 5)])
def test_ssim_refuses_images_too_small_to_reflect(height: int, width: int):
    probs = torch.rand(1, 7, height, width)
    with pytest.raises(ValueError, match=f"{height}x{width} pixels, must be at least 6x6"):
        ssim(probs, probs.round())


def test_total_is_the_weighted_sum_of_unweighted_detached_terms():
    weights = {"cross_entropy": 1.1, "ssim": 0.4, "soft_iou": 0.5, "lovasz": 0.7}
    total, terms = HybridLoss(weights)(random_logits(2, 7, 16, 28), blocks())
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in TERMS), rel=1e-6)
    assert set(terms) == set(TERMS) and total.requires_grad
    assert not any(value.requires_grad or value.shape for value in terms.values())


def test_terms_without_weight_are_not_computed():
    too_small_for_ssim = random_logits(1, 7, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    _, terms = HybridLoss({"soft_iou": 1, "ssim": 0})(*too_small_for_ssim)
    assert list(terms) == ["soft_iou"]


@pytest.mark.parametrize("family", FAMILIES)
def test_total_is_zero_and_flat_when_every_pixel_is_void(family: str):
    logits = random_logits(2, 7, 4, 7)
    total, _ = FAMILIES[family](logits, torch.full((2, 16, 28), VOID, dtype=torch.uint8))
    assert total.item() == 0
    assert torch.equal(slope(total, logits), torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_mixed_precision(dtype: torch.dtype):
    logits, labels = random_logits(2, 7, 4, 7).detach().to(dtype).requires_grad_(), blocks(void=True)
    loss = HybridLoss(dict.fromkeys(TERMS, 1.0), CLASS_WEIGHTS)
    expected, _ = loss(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = loss(logits, labels)
    assert torch.equal(total, expected) and all(value.dtype == torch.float32 for value in terms.values())
    assert slope(total, logits).dtype == dtype


def test_loss_keeps_nothing_in_a_checkpoint_and_moves_its_class_weights():
    loss = HybridLoss({"cross_entropy": 1}, CLASS_WEIGHTS)
    assert not loss.state_dict()
    assert loss.to("meta").class_weights.device.type == "meta"


@pytest.mark.parametrize(
    ("weights", "class_weights", "message"),
    [
        ({"dice": 1}, None, "loss.dice: no such term; there are: cross_entropy, ssim, soft_iou, lovasz"),
        ({"ssim": -1}, None, "loss.ssim: got -1, must be finite and at least 0"),
        ({"ssim": float("nan")}, None, "loss.ssim: got nan, must be finite"),
        ({"ssim": float("inf")}, None, "loss.ssim: got inf, must be finite"),
        ({"ssim": 0}, None, "no term has a weight above 0"),
        ({"ssim": 1}, (1, 1, 1, 1, 1, 1, -1), "must be finite numbers of at least 0"),
    ],
)
def test_mistaken_weights_are_named(weights: dict, class_weights: tuple | None, message: str):
    with pytest.raises(ValueError, match=message):
        HybridLoss(weights, class_weights)
