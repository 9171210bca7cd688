"""Boundary IoU against a count pixel by pixel."""

import math

import pytest
import torch
from thin_street import NUM_CLASSES, THIN_STREET
from torch import Tensor

from fgseg.labels import VOID
from fgseg.metrics.boundary_iou import boundary_counts, boundary_iou, class_boundary_iou, rim, rim_width

SIZE = (20, 26)


def one_hot(prediction: Tensor) -> Tensor:
    """Logits (N, 7, H, W) whose highest class is the prediction."""
    return torch.nn.functional.one_hot(prediction, NUM_CLASSES).permute(0, 3, 1, 2).float()


def blobs(seed: int) -> Tensor:
    """Two label images with patches of every class, (2, 20, 26) int64."""
    coarse = torch.randint(NUM_CLASSES, (2, 5, 7), generator=torch.Generator().manual_seed(seed))
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : SIZE[0], : SIZE[1]]


def slow_rim(mask: list[list[bool]], void: list[list[bool]], width: int) -> set[tuple[int, int]]:
    """The rim by its definition: pixels of the mask with its outside, or the image's, within `width` pixels."""
    height, length = len(mask), len(mask[0])

    def outside(y: int, x: int) -> bool:
        inside = 0 <= y < height and 0 <= x < length
        return not inside or not (mask[y][x] or void[y][x])

    reach = range(-width, width + 1)
    return {
        (y, x)
        for y in range(height)
        for x in range(length)
        if mask[y][x] and not void[y][x] and any(outside(y + dy, x + dx) for dy in reach for dx in reach)
    }


@pytest.mark.parametrize("with_void", [False, True])
def test_counts_are_those_of_a_search_pixel_by_pixel(with_void: bool):
    truth, prediction = blobs(1), blobs(2)
    if with_void:
        truth[:, 6:11, 3:9] = VOID
    counts = boundary_counts(one_hot(prediction), truth)
    void, width = (truth == VOID).tolist(), rim_width(*SIZE)
    for image in range(2):
        for label in range(NUM_CLASSES):
            maps = ((m[image] == label).tolist() for m in (truth, prediction))
            real, claimed = (slow_rim(m, void[image], width) for m in maps)
            assert counts[image, label].tolist() == [len(real & claimed), len(real | claimed)]


@pytest.mark.parametrize(("size", "width"), [((1024, 2048), 46), ((512, 1024), 23), ((128, 256), 6), ((10, 10), 1)])
def test_rim_is_two_percent_of_the_diagonal_wide(size: tuple[int, int], width: int):
    assert rim_width(*size) == width


def test_prediction_like_the_truth_has_boundary_iou_1_and_absent_classes_none():
    truth = torch.zeros(1, *SIZE, dtype=torch.long)
    truth[:, 4:16, 5:20] = 2
    iou = boundary_iou(boundary_counts(one_hot(truth), truth)).squeeze(0).tolist()
    assert [iou[0], iou[2]] == [1.0, 1.0]
    assert all(math.isnan(iou[label]) for label in (1, 3, 4, 5, 6))


def test_boundary_iou_by_class_leaves_out_classes_that_the_truth_lacks():
    counts = torch.tensor([[1, 2]] * 7)
    iou = {c.key: 0.5 for c in THIN_STREET.foreground} | {"pole": math.nan}
    found = class_boundary_iou(counts, iou, THIN_STREET)
    assert {key: value for key, value in found.items() if not math.isnan(value)} == dict.fromkeys(
        iou.keys() - {"pole"}, 0.5
    )
    assert found.keys() == iou.keys()


def test_thin_class_is_all_rim_and_a_large_one_is_not():
    mask = torch.zeros(2, 60, 60, dtype=torch.bool)
    mask[0, :, 30:32], mask[1, 10:50, 10:50] = True, True
    sizes = rim(mask, torch.zeros_like(mask), 2).sum((1, 2)).tolist()
    assert sizes == [60 * 2, 40 * 40 - 36 * 36]


def test_image_that_is_void_throughout_counts_nothing():
    truth = torch.full((1, *SIZE), VOID)
    assert boundary_counts(one_hot(blobs(3)[:1]), truth).sum() == 0


def test_logits_of_a_quarter_of_the_size_are_resized_first():
    logits = torch.randn(1, NUM_CLASSES, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = blobs(4)[:1, :16, :16]
    resized = torch.nn.functional.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    assert boundary_counts(logits, truth).equal(boundary_counts(resized, truth))
