"""The label set cityscapes19 against the evaluation code of Cityscapes itself."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluation
from cityscapesscripts.helpers.labels import labels as official
from PIL import Image
from torch import Tensor
from transformers import SegformerForSemanticSegmentation

from fgseg.config.loading import Layer, build
from fgseg.data import FrameSet, load_splits
from fgseg.data.device_frames import HostFrames
from fgseg.inference.tiling import tiled_logits
from fgseg.labels import VOID, cityscapes_table, key_of, load_label_set, remap
from fgseg.metrics.evaluator import evaluate, predict_labels
from fgseg.metrics.iou import class_iou, confusion_counts, miou, predicted_labels
from fgseg.model.segformer import quiet

CLASSES = load_label_set("cityscapes19")


def official_scores(truth: np.ndarray, prediction: np.ndarray, folder: Path) -> tuple[dict[str, float], float]:
    """IoU by class key and their mean by cityscapesscripts, from ids (N, H, W) uint8."""
    files = {}
    for name, images in {"prediction": prediction, "truth": truth}.items():
        files[name] = [str(folder / f"{name}{i}.png") for i in range(len(images))]
        for file, ids in zip(files[name], images, strict=True):
            Image.fromarray(ids).save(file)
    settings = {**vars(evaluation.args), "quiet": True, "JSONOutput": False, "evalInstLevelScore": False}
    result = evaluation.evaluateImgLists(files["prediction"], files["truth"], SimpleNamespace(**settings))
    return {c.key: result["classScores"][c.name] for c in CLASSES.classes}, result["averageScoreClasses"]


def ids_of(labels: np.ndarray) -> np.ndarray:
    """The Cityscapes id of each label; 0, which is not evaluated, for void."""
    table = np.zeros(256, np.uint8)
    for c in CLASSES.classes:
        table[c.label] = c.ids[0]
    return table[labels]


def counts_of(truth: np.ndarray, prediction: np.ndarray) -> Tensor:
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction).long(), CLASSES.num_classes).movedim(-1, 1)
    return confusion_counts(logits, torch.from_numpy(truth)).sum(0)


def test_every_id_is_evaluated_as_cityscapes_evaluates_it(tmp_path: Path):
    generator = np.random.default_rng(0)
    truth = generator.choice([each.id for each in official if each.id >= 0], (4, 40, 60)).astype(np.uint8)
    table = cityscapes_table(CLASSES, "background")
    right = remap(truth, table)
    wrong = generator.integers(0, 19, truth.shape)
    prediction = np.where((generator.random(truth.shape) < 0.5) & (right != VOID), right, wrong).astype(np.uint8)
    iou = class_iou(counts_of(right, prediction), CLASSES)
    expected, mean = official_scores(truth, ids_of(prediction), tmp_path)
    # both divide the same integers in float64
    assert iou == pytest.approx(expected, rel=1e-15) and miou(iou) == pytest.approx(mean, rel=1e-12)


def real_frames(shared: Path, cache: Path, height: int, width: int) -> FrameSet:
    """Two original frames of Cityscapes with all of its ids, resized to a size."""
    values = {"data.reader": "cityscapes", "data.root": str(shared / "data" / "cityscapes_full8")}
    values |= {"data.labels": "cityscapes19", "data.height": height, "data.width": width, "data.cache": str(cache)}
    run = build([Layer("test", values | {"data.train": 1, "data.val": 2, "data.test": 0})])
    return load_splits(run.data, ("val",))["val"]


def real_model(shared: Path) -> torch.nn.Module:
    """A SegFormer with the 19 classes, trained on frames of 256x512."""
    folder = shared / "checkpoint" / "segformer-b0-cityscapes256"
    with quiet():
        model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    assert [key_of(name) for name in model.config.id2label.values()] == list(CLASSES.keys)
    return model


def scores(
    frames: FrameSet, counts: Tensor, predicted: np.ndarray, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """The IoU of every class that occurs in the frames, ours and that of cityscapesscripts; absent ones have none."""
    official, _ = official_scores(ids_of(np.asarray(frames.labels)), ids_of(predicted), folder)
    iou, absent = class_iou(counts, CLASSES), {c.key for c in frames.absent(CLASSES)}
    assert {key for key, value in iou.items() if math.isnan(value)} == absent
    return tuple({key: found[key] for key in iou if key not in absent} for found in (iou, official))


@pytest.mark.slow
def test_real_checkpoint_has_the_scores_of_cityscapes_own_code(shared: Path, tmp_path: Path):
    frames, model = real_frames(shared, tmp_path / "cache", 256, 512), real_model(shared)
    counts = evaluate(model, HostFrames(frames, torch.device("cpu"))).sum(0)
    images = torch.from_numpy(np.array(frames.images)).permute(0, 3, 1, 2)
    ours, official = scores(frames, counts, predict_labels(model, images).numpy(), tmp_path)
    assert len(ours) > 10 and ours["road"] > 0.8
    assert ours == pytest.approx(official, rel=1e-12)


@pytest.mark.slow
def test_sliding_windows_over_larger_frames_have_the_scores_of_cityscapes_own_code(shared: Path, tmp_path: Path):
    frames, model = real_frames(shared, tmp_path / "cache", 384, 768), real_model(shared)
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in frames.images]
    logits = torch.stack([tiled_logits(model, image, (256, 512)) for image in images])
    counts = confusion_counts(logits, torch.from_numpy(np.array(frames.labels))).sum(0)
    predicted = predicted_labels(logits, (384, 768)).to(torch.uint8).numpy()
    ours, official = scores(frames, counts, predicted, tmp_path)
    assert len(ours) > 10 and ours["road"] > 0.8
    assert ours == pytest.approx(official, rel=1e-12)
