"""Confusion counts and IoU: by hand, by the source's tables, and by Cityscapes' own evaluation."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluation
from PIL import Image
from thin_street import CLASSES, FOREGROUND, THIN_STREET
from torch import Tensor

from fgseg.labels import VOID, load_label_set
from fgseg.metrics.iou import class_iou, confusion_counts, iou_from_confusion, miou
from fgseg.results import format_iou

SOURCE_TABLES = {
    "baseline": ((0.3438, 0.8964, 0.8968, 0.3119, 0.5653, 0.4583), 0.5788),
    "bas": ((0.3960, 0.8943, 0.8948, 0.3379, 0.5819, 0.4730), 0.5963),
    "bas_cp": ((0.3880, 0.8960, 0.8951, 0.3385, 0.5894, 0.4775), 0.5974),
    "slc": ((0.3786, 0.8947, 0.8913, 0.3314, 0.5787, 0.4724), 0.5912),
}


def random_masks(*classes: int, images: int = 3, height: int = 24, width: int = 40) -> tuple[Tensor, Tensor]:
    """Truth with some void, and a prediction that is right half of the time; both (images, height, width) uint8."""
    generator = torch.Generator().manual_seed(7)
    shape = (images, height, width)
    table = torch.tensor(classes, dtype=torch.uint8)
    truth, other = (table[torch.randint(len(classes), shape, generator=generator)] for _ in range(2))
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.5, truth, other)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, VOID, truth), prediction


def logits_of(prediction: Tensor) -> Tensor:
    return F.one_hot(prediction.long(), 7).movedim(-1, 1).float()


def cityscapes_iou(truth: Tensor, prediction: Tensor, folder: Path) -> dict[str, float]:
    """Per-class IoU by cityscapesscripts, from masks written as id images; background as road, an id it evaluates."""
    ids = np.zeros(256, dtype=np.uint8)
    for c in CLASSES:
        ids[c.label] = c.ids[0] if c.ids else 7
    files = {}
    for name, masks in {"prediction": prediction, "truth": truth}.items():
        files[name] = [str(folder / f"{name}{i}.png") for i in range(len(masks))]
        for file, mask in zip(files[name], masks, strict=True):
            Image.fromarray(ids[mask.numpy()]).save(file)
    settings = {**vars(evaluation.args), "quiet": True, "JSONOutput": False, "evalInstLevelScore": False}
    result = evaluation.evaluateImgLists(files["prediction"], files["truth"], SimpleNamespace(**settings))
    return {c.key: result["classScores"][c.name] for c in FOREGROUND}


@pytest.mark.parametrize("family", SOURCE_TABLES)
def test_miou_is_the_mean_that_the_source_printed(family: str):
    values, expected = SOURCE_TABLES[family]
    iou = dict(zip([c.key for c in FOREGROUND], values, strict=True))
    # the table has four decimals
    assert miou(iou) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("classes", [range(7), (0, 1, 2, 4)], ids=["all classes", "three absent"])
def test_iou_equals_cityscapes_own_evaluation(classes, tmp_path: Path):
    truth, prediction = random_masks(*classes)
    ours = class_iou(confusion_counts(logits_of(prediction), truth).sum(0), THIN_STREET)
    # both divide the same integers in float64
    assert ours == pytest.approx(cityscapes_iou(truth, prediction, tmp_path), rel=1e-15, nan_ok=True)


def test_counts_have_truth_in_rows_and_prediction_in_columns():
    counts = confusion_counts(logits_of(torch.full((1, 2, 3), 4)), torch.full((1, 2, 3), 2, dtype=torch.uint8))
    expected = torch.zeros(1, 7, 7, dtype=torch.int64)
    expected[0, 2, 4] = 6
    assert torch.equal(counts, expected)


def test_counts_are_per_image():
    truth, prediction = random_masks(*range(7))
    counts = confusion_counts(logits_of(prediction), truth)
    alone = [confusion_counts(logits_of(prediction[i : i + 1]), truth[i : i + 1])[0] for i in range(3)]
    assert counts.dtype == torch.int64 and torch.equal(counts, torch.stack(alone))


def test_void_pixels_are_left_out():
    # more than 37 images, since 255 * 7 is a cell of the 37th
    truth, prediction = random_masks(*range(7), images=60)
    counts = confusion_counts(logits_of(prediction), truth)
    assert counts.sum((1, 2)).tolist() == (truth != VOID).sum((1, 2)).tolist()


def test_image_of_void_alone_counts_nothing():
    truth = torch.full((2, 4, 4), VOID, dtype=torch.uint8)
    assert torch.equal(confusion_counts(torch.zeros(2, 7, 4, 4), truth), torch.zeros(2, 7, 7, dtype=torch.int64))


def test_logits_are_upsampled_before_the_winner_is_taken():
    logits = torch.zeros(1, 7, 1, 2)
    logits[0, 1, 0], logits[0, 2, 0] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    # at 8 pixels class 2 wins from the fourth on; the winners of the two logits, enlarged, would split 4 to 4
    counts = confusion_counts(logits, torch.ones(1, 1, 8, dtype=torch.uint8))
    assert counts[0, 1, 1:3].tolist() == [3, 5]


def test_half_precision_logits_are_compared_in_float32():
    logits = torch.randn(2, 7, 6, 10, generator=torch.Generator().manual_seed(0)).half()
    truth, _ = random_masks(*range(7), images=2)
    assert torch.equal(confusion_counts(logits, truth), confusion_counts(logits.float(), truth))


def test_iou_by_hand():
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    confusion[1, 1], confusion[1, 2], confusion[2, 2], confusion[0, 1] = 6, 2, 1, 4
    iou = iou_from_confusion(confusion)
    assert iou.dtype == torch.float64
    assert iou[:3].tolist() == [0, 6 / 12, 1 / 3]
    assert iou[3:].isnan().all()


def test_iou_takes_any_leading_dimensions():
    confusion = torch.randint(0, 9, (4, 3, 7, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(iou_from_confusion(confusion)[2, 1], iou_from_confusion(confusion[2, 1]))


def test_absent_classes_are_left_out_of_the_mean_by_name():
    truth, prediction = random_masks(0, 1, 2, 3, 5)
    iou = class_iou(confusion_counts(logits_of(prediction), truth).sum(0), THIN_STREET)
    assert list(iou) == ["fence", "car", "vegetation", "pole", "traffic_sign", "traffic_light"]
    assert [key for key, value in iou.items() if format_iou(value) == "absent"] == ["pole", "traffic_light"]
    assert miou(iou) == pytest.approx(np.mean([iou[key] for key in ("fence", "car", "vegetation", "traffic_sign")]))


def test_predictions_of_a_class_that_does_not_occur_have_no_iou():
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    confusion[1, 1], confusion[1, 2] = 3, 1
    iou = class_iou(confusion, THIN_STREET)
    assert iou["fence"] == 0.75 and math.isnan(iou["car"]) and miou(iou) == 0.75


def test_miou_of_a_set_without_background_covers_every_class():
    iou = class_iou(torch.eye(19), load_label_set("cityscapes19"))
    assert len(iou) == 19 and miou(iou) == 1


def test_miou_is_nan_when_every_class_is_absent():
    assert math.isnan(miou(class_iou(torch.zeros(7, 7), THIN_STREET)))
