"""The definitions of all augmentations, pixel by pixel and in the long run."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fgseg.data.augment import (
    FILL,
    ComponentSource,
    colour_matrix,
    copy_paste,
    distort_colours,
    flip,
    paste_components,
    scale_and_crop,
)
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


def component(batch: int, columns: slice, label: int = 3, width: int = 8) -> ComponentSource:
    """A component in row 1 of images (batch, 3, 4, width); every pixel shows its column plus 100."""
    images = (100 + torch.arange(width, dtype=torch.uint8)).expand(batch, 3, 4, width)
    masks = torch.zeros(batch, 4, width, dtype=torch.bool)
    masks[:, 1, columns] = True
    ends = (torch.full((batch,), end) for end in (columns.start, columns.stop))
    return ComponentSource(images, masks, torch.full((batch,), label, dtype=torch.uint8), *ends)


def paste(*sources: ComponentSource, prob: float = 1.0) -> tuple[Tensor, Tensor]:
    """Paste components onto black images without labels."""
    images, labels = torch.zeros_like(sources[0].images), torch.full(sources[0].masks.shape, VOID, dtype=torch.uint8)
    return paste_components(images, labels, sources, len(sources), prob, seeded())


def test_component_stays_in_its_row_whole_and_is_moved_and_mirrored():
    images, labels = paste(component(500, slice(2, 5)))
    pasted = labels == 3
    assert (pasted.sum((1, 2)) == 3).all() and pasted[:, 1].sum() == pasted.sum()
    assert torch.equal(images[:, 0] > 0, pasted)
    rows = {tuple(row[row > 0].tolist()) for row in images[:, 0, 1]}
    assert rows == {(102, 103, 104), (104, 103, 102)}
    places = torch.bincount(pasted[:, 1].int().argmax(1), minlength=8)
    assert (places[:6] > 0).all() and not places[6:].any()


def test_component_as_wide_as_the_image_stays_where_it_is():
    _, labels = paste(component(20, slice(0, 8)))
    assert ((labels == 3) == component(20, slice(0, 8)).masks).all()


def test_number_of_components_is_uniform_and_the_last_one_lies_on_top():
    whole = [component(DRAWS, slice(0, 8), label) for label in (1, 2, 4)]
    _, labels = paste(*whole, prob=0.75)
    shares = torch.bincount(labels[:, 1, 0].int(), minlength=5) / DRAWS
    assert shares[:5].tolist() == pytest.approx([0, 0.25, 0.25, 0, 0.25], abs=TOLERANCE)


def test_nothing_else_than_the_component_is_pasted():
    _, labels = frames(16, first=0, seed=1)
    _, source_labels = frames(16, first=0, seed=2)
    images, source_images = (torch.full((16, 3, 6, 9), grey, dtype=torch.uint8) for grey in (10, 200))
    masks = source_labels == 2
    ends = torch.zeros(16, dtype=torch.int64), torch.full((16,), 9)
    source = ComponentSource(source_images, masks, torch.full((16,), 2, dtype=torch.uint8), *ends)
    new_images, new_labels = paste_components(images, labels, [source], 1, 1.0, seeded())
    pasted = new_images[:, 0] == 200
    assert torch.equal(pasted.sum((1, 2)), masks.sum((1, 2))) and (new_labels[pasted] == 2).all()
    assert (new_images == torch.where(pasted, 200, 10)[:, None]).all()
    assert torch.equal(new_labels[~pasted], labels[~pasted])


def ramp(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images (batch, 3, height, width) uint8 of rows, columns and a checkerboard, and labels by quarter."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows * 3, columns * 2, (rows + columns) % 2 * 255]).to(torch.uint8)
    labels = (rows * 2 // height * 2 + columns * 2 // width).to(torch.uint8)
    return image.expand(batch, -1, -1, -1), labels.expand(batch, -1, -1)


def test_crop_without_scaling_copies_pixels_and_every_place_is_taken():
    images, labels = ramp(400, 12, 20)
    crops, crop_labels = scale_and_crop(images, labels, 1.0, (9, 16), seeded())
    corners = Counter((int(crop[0, 0, 0]) // 3, int(crop[1, 0, 0]) // 2) for crop in crops)
    assert set(corners) == {(top, left) for top in range(4) for left in range(5)}
    assert min(corners.values()) > 5  # 20 places, each 20 times on average
    for crop, crop_label in zip(crops, crop_labels, strict=True):
        top, left = int(crop[0, 0, 0]) // 3, int(crop[1, 0, 0]) // 2
        assert torch.equal(crop, images[0, :, top : top + 9, left : left + 16])
        assert torch.equal(crop_label, labels[0, top : top + 9, left : left + 16])


def test_crop_of_the_size_of_the_frame_without_scaling_changes_nothing():
    images, labels = frames(4, first=0, seed=1)
    images = (images % 256).to(torch.uint8)
    new_images, new_labels = scale_and_crop(images, labels, 1.0, (6, 9), seeded())
    assert torch.equal(new_images, images) and torch.equal(new_labels, labels)


def test_scale_is_log_uniform():
    labels = torch.ones(DRAWS, 1, 64, dtype=torch.uint8)
    _, wide = scale_and_crop(labels[:, None].expand(-1, 3, -1, -1), labels, 2.0, (1, 128), seeded())
    # the width of the scaled frame within a part that is at least as wide
    shares = torch.log2((wide == 1).sum(-1).float().clamp(min=1) / 64)
    inside = shares[shares > -3]  # a row of less than half a pixel may lie beside the part
    assert inside.min() >= -1.05 and inside.max() <= 1.05
    assert inside.mean().item() == pytest.approx(0, abs=0.03)
    assert (inside < -0.5).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_frame_that_is_smaller_than_the_part_is_filled_with_void_at_any_place():
    images, labels = ramp(64, 8, 12)
    new_images, new_labels = scale_and_crop(images, labels, 1.0, (16, 24), seeded())
    outside = new_labels == VOID
    assert (outside.sum((1, 2)) == 16 * 24 - 8 * 12).all()
    assert (new_images[:, 0][outside] == FILL).all()
    assert len({int(row) for row in (~outside).any(2).int().argmax(1)}) > 4
    for image, label in zip(new_images, new_labels, strict=True):
        kept = label != VOID
        assert torch.equal(image[:, kept], images[0].flatten(1)) and torch.equal(label[kept], labels[0].flatten())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaled_frame_is_that_of_torchs_bilinear_resizing(factor: float, monkeypatch: pytest.MonkeyPatch):
    draws = torch.tensor([[0.5 + 0.5 * math.log2(factor), 0.0, 0.0]])
    monkeypatch.setattr(torch, "rand", lambda *size, **options: draws)
    images, labels = ramp(1, 16, 24)
    size = (int(16 * factor), int(24 * factor))
    scaled, scaled_labels = scale_and_crop(images, labels, 2.0, size, seeded())
    expected = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False).round()
    assert (scaled.float() - expected).abs().max() <= 1  # halves may round either way
    assert torch.equal(scaled_labels, F.interpolate(labels[None].float(), size=size, mode="nearest")[0].to(torch.uint8))


def test_colours_stay_without_strength_and_change_with_it():
    images = torch.randint(0, 256, (64, 3, 5, 7), generator=seeded(), dtype=torch.uint8)
    assert torch.equal(distort_colours(images, 0.0, seeded()), images)
    changed = (distort_colours(images, 1.0, seeded()) != images).flatten(1).any(1)
    # nothing happens with probability one half to the power of four, and little with small changes
    assert 0.8 < changed.float().mean() < 1


def test_grey_stays_grey_and_is_scaled_by_contrast_alone():
    contrast, saturation, hue = torch.tensor([1.3]), torch.tensor([0.4]), torch.tensor([0.5])
    matrix = colour_matrix(contrast, saturation, hue)[0]
    torch.testing.assert_close(matrix @ torch.full((3,), 50.0), torch.full((3,), 65.0))


def test_hue_turns_red_into_green_and_saturation_zero_leaves_the_luma():
    one, third = torch.ones(1), torch.tensor([2 * math.pi / 3])
    turned = colour_matrix(one, one, third)[0] @ torch.tensor([200.0, 0, 0])
    torch.testing.assert_close(turned, torch.tensor([0, 200.0, 0]), atol=1e-4, rtol=0)
    grey = colour_matrix(one, torch.zeros(1), torch.zeros(1))[0] @ torch.tensor([100.0, 50, 10])
    torch.testing.assert_close(grey, torch.full((3,), 0.299 * 100 + 0.587 * 50 + 0.114 * 10))


def test_brightness_has_the_range_of_the_source():
    images = torch.full((DRAWS, 3, 1, 1), 128, dtype=torch.uint8)
    with_brightness = distort_colours(images, 1.0, seeded())[:, 0, 0, 0].float()
    # brightest: (128 + 32) * 1.5, darkest: (128 - 32) * 0.5; hue and saturation leave grey as it is
    assert 230 < with_brightness.max() <= 240 and 48 <= with_brightness.min() < 55
    assert (with_brightness == 128).float().mean().item() == pytest.approx(0.25, abs=TOLERANCE + 0.02)


@pytest.mark.parametrize("call", [
    lambda images, labels, generator: scale_and_crop(images, labels, 2.0, (16, 16), generator)[0],
    lambda images, labels, generator: distort_colours(images, 1.0, generator),
])  # fmt: skip
def test_augmentation_follows_the_generator_and_keeps_its_inputs(call):
    images, labels = ramp(6, 16, 24)
    images = images.clone()
    before = images.clone()
    first, again, other = (call(images, labels, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(images, before)
    assert first.dtype == torch.uint8
