"""Copy-paste's law, pixel by pixel and in the long run."""

import pytest
import torch
from torch import Generator, Tensor

from fgseg.data.augment import copy_paste, flip
from fgseg.labels import VOID

CLASSES = range(1, 7)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def frames(batch: int, *, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose every value is unique from first on, and random labels with void: (B, 3, 6, 9) and (B, 6, 9)."""
    images = torch.arange(first, first + batch * 3 * 6 * 9, dtype=torch.int32).view(batch, 3, 6, 9)
    labels = torch.randint(0, 8, (batch, 6, 9), generator=seeded(seed)).to(torch.uint8)
    return images, torch.where(labels == 7, VOID, labels)


def strip(*labels: int, batch: int) -> tuple[Tensor, Tensor]:
    """One row of pixels with these labels, and images that show each pixel's label plus 10 per column."""
    row = torch.tensor(labels, dtype=torch.uint8).expand(batch, 1, -1).clone()
    images = row[:, None].int() + 10 * torch.arange(1, len(labels) + 1, dtype=torch.int32)
    return images.expand(-1, 3, -1, -1), row


def paste_strip(*labels: int, batch: int, prob: float = 1.0) -> tuple[Tensor, Tensor]:
    """Paste a strip onto void on zeros: images (batch, 3, 1, W) and labels (batch, 1, W)."""
    source = strip(*labels, batch=batch)
    return copy_paste(torch.zeros_like(source[0]), torch.full_like(source[1], VOID), *source, CLASSES, prob, seeded())


def test_nothing_is_pasted_with_probability_zero():
    images, labels = frames(4, first=0, seed=1)
    new_images, new_labels = copy_paste(images, labels, *frames(4, first=10_000, seed=2), CLASSES, 0.0, seeded())
    assert torch.equal(new_images, images) and torch.equal(new_labels, labels)


def test_something_is_pasted_on_every_image_with_probability_one():
    images, labels = frames(64, first=0, seed=1)
    new_images, _ = copy_paste(images, labels, *frames(64, first=100_000, seed=2), CLASSES, 1.0, seeded())
    assert (new_images != images).flatten(1).any(1).all()


def test_pasted_pixels_come_from_the_source_with_their_labels_and_the_rest_is_untouched():
    images, labels = frames(32, first=0, seed=1)
    source_images, source_labels = frames(32, first=100_000, seed=2)
    new_images, new_labels = copy_paste(images, labels, source_images, source_labels, CLASSES, 0.7, seeded())
    pasted = new_images[:, 0] >= 100_000
    mirrored = new_images[:, 0] == source_images[:, 0].flip(-1)
    pixels = torch.where(mirrored[:, None], source_images.flip(-1), source_images)
    ids = torch.where(mirrored, source_labels.flip(-1), source_labels)
    assert torch.equal(new_images, torch.where(pasted[:, None], pixels, images))
    assert torch.equal(new_labels, torch.where(pasted, ids, labels))


def test_all_pixels_of_a_pasted_class_are_pasted():
    new_images, new_labels = paste_strip(1, 2, 1, 3, 1, batch=50)
    pasted = new_images[:, 0] > 0
    ones = (new_labels == 1).sum((1, 2))
    assert set(ones.tolist()) == {0, 3} and torch.equal(pasted, new_labels != VOID)


def test_void_and_background_are_never_pasted():
    _, new_labels = paste_strip(0, VOID, 4, 0, VOID, batch=200)
    assert (new_labels == 4).sum() == 200
    assert (new_labels == VOID).sum() == 200 * 4


def test_source_without_foreground_changes_nothing():
    new_images, new_labels = paste_strip(0, VOID, 0, batch=20)
    assert not new_images.any() and (new_labels == VOID).all()


def test_source_may_be_the_image_itself():
    images, labels = strip(0, 3, batch=40)
    _, new_labels = copy_paste(images, labels, images, labels, CLASSES, 1.0, seeded())
    assert {tuple(row) for row in new_labels[:, 0].tolist()} == {(0, 3), (3, 3)}


# The shares below are of 20,000 draws: five standard deviations of a share are at most 5 * 0.5 / sqrt(20000) = 0.018.
DRAWS, TOLERANCE = 20_000, 0.018


@pytest.mark.parametrize("prob", [0.2, 0.5])
def test_paste_happens_with_the_probability_asked_for(prob: float):
    _, labels = paste_strip(1, 0, batch=DRAWS, prob=prob)
    assert (labels == 1).any(-1).float().mean().item() == pytest.approx(prob, abs=TOLERANCE)


def test_source_is_mirrored_half_of_the_time():
    _, labels = paste_strip(1, 0, batch=DRAWS)
    assert (labels[:, 0, 1] == 1).float().mean().item() == pytest.approx(0.5, abs=TOLERANCE)


@pytest.mark.parametrize("present", [(2,), (1, 6), (1, 3, 4, 5), (1, 2, 3, 4, 5, 6)])
def test_number_of_classes_is_uniform(present: tuple[int, ...]):
    _, labels = paste_strip(0, *present, VOID, batch=DRAWS)
    shares = torch.bincount((labels != VOID).sum((1, 2)), minlength=len(present) + 1) / DRAWS
    assert shares.tolist() == pytest.approx([0] + [1 / len(present)] * len(present), abs=TOLERANCE)


def test_each_set_of_classes_of_one_size_is_equally_likely():
    _, labels = paste_strip(1, 3, 4, batch=DRAWS)
    sets = sum((labels == c).any(-1).long() << i for i, c in enumerate((1, 3, 4)))
    shares = torch.bincount(sets.flatten(), minlength=8) / DRAWS
    # one of three sizes, then one of the three, three or one sets of that size
    assert shares.tolist() == pytest.approx([0, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 3], abs=TOLERANCE)


def test_decisions_do_not_depend_on_one_another():
    _, labels = paste_strip(1, 0, 2, 0, batch=DRAWS, prob=0.5)
    mirrored = (labels[:, 0, [1, 3]] != VOID).any(-1)
    both = (labels != VOID).sum((1, 2)) == 2
    # pasted, mirrored and both of the two classes: one half each
    assert (mirrored & both).float().mean().item() == pytest.approx(0.125, abs=TOLERANCE)


def test_same_seed_gives_the_same_result_and_another_seed_another():
    arguments = *frames(8, first=0, seed=1), *frames(8, first=10_000, seed=2), CLASSES, 0.5
    first, again, other = (copy_paste(*arguments, seeded(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_generator_moves_on_by_the_same_amount_whatever_is_decided():
    target, generators = strip(0, 0, batch=5), [seeded(), seeded()]
    copy_paste(*target, *strip(1, 2, batch=5), CLASSES, 1.0, generators[0])
    copy_paste(*target, *strip(0, 0, batch=5), CLASSES, 0.0, generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_dtypes_and_inputs_are_kept(dtype: torch.dtype):
    inputs = [t.to(dtype if t.dim() == 4 else torch.uint8) for i in (0, 1) for t in frames(8, first=0, seed=i)]
    before = [t.clone() for t in inputs]
    images, labels = copy_paste(*inputs, CLASSES, 1.0, seeded())
    assert images.dtype == dtype and labels.dtype == torch.uint8
    assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))


def test_flip_mirrors_image_and_labels_together_with_the_probability_asked_for():
    images, labels = strip(1, 2, 3, batch=DRAWS)
    new_images, new_labels = flip(images, labels, 0.3, seeded())
    flipped = (new_labels == labels.flip(-1)).flatten(1).all(1)
    assert torch.equal(new_images, torch.where(flipped[:, None, None, None], images.flip(-1), images))
    assert torch.equal(new_labels, torch.where(flipped[:, None, None], labels.flip(-1), labels))
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=TOLERANCE)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_flip_is_certain_at_the_ends(prob: float):
    images, labels = frames(16, first=0, seed=1)
    new_images, new_labels = flip(images, labels, prob, seeded())
    assert torch.equal(new_images, images.flip(-1) if prob else images)
    assert torch.equal(new_labels, labels.flip(-1) if prob else labels)
