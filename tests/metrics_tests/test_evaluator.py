"""Judging and predicting frames: one and the same labels, however many at a time."""

import numpy as np
import pytest
import torch
from random_frames import some_frames
from thin_street import NUM_CLASSES, THIN_STREET

from fgseg.data.device_frames import HostFrames
from fgseg.labels import VOID
from fgseg.metrics import evaluator as judge
from fgseg.metrics.evaluator import evaluate, predict_labels
from fgseg.model.segformer import build_model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("small", THIN_STREET)


def test_predicted_labels_are_those_that_evaluation_counts(model: torch.nn.Module):
    frames = some_frames()
    predicted = predict_labels(model, torch.from_numpy(frames.images).permute(0, 3, 1, 2)).numpy()
    counts = np.zeros((5, NUM_CLASSES, NUM_CLASSES), np.int64)
    for k, (truth, labels) in enumerate(zip(frames.labels, predicted, strict=True)):
        np.add.at(counts[k], (truth[truth != VOID], labels[truth != VOID]), 1)
    assert (counts == evaluate(model, HostFrames(frames, torch.device("cpu"))).numpy()).all()


def test_prediction_takes_any_number_of_images_a_few_at_a_time(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    images = torch.from_numpy(some_frames().images).permute(0, 3, 1, 2)
    whole = predict_labels(model, images)
    monkeypatch.setattr(judge, "CPU_BATCH_PX", 2 * 64 * 128)
    sizes: list[int] = []
    with torch.no_grad():
        hook = model.register_forward_pre_hook(lambda m, a, k: sizes.append(len(k["pixel_values"])), with_kwargs=True)
        predicted = predict_labels(model, images)
        hook.remove()
    assert sizes == [2, 2, 1]
    assert whole.shape == (5, 64, 128) and whole.dtype == torch.uint8
    # Batches of another size may round differently: a pixel at a tie may change.
    assert (whole != predicted).float().mean() < 0.001
