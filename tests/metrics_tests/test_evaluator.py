"""Judging and predicting frames: one and the same labels, however many at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_frames import some_frames
from thin_street import NUM_CLASSES, THIN_STREET

from fgseg.data.device_frames import HostFrames
from fgseg.data.windows import sliding_logits
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


def blocks_model(pixel_values: torch.Tensor) -> SimpleNamespace:
    """Each logit depends on its own 4x4 pixels only: then no window may show."""
    means = F.avg_pool2d(pixel_values, 4)
    return SimpleNamespace(logits=torch.cat([means, -means, means[:, :1] * 2], 1))


def test_window_that_covers_the_frames_gives_exactly_the_plain_evaluation(model: torch.nn.Module):
    frames = HostFrames(some_frames(), torch.device("cpu"))
    plain = evaluate(model, frames)
    assert torch.equal(plain, evaluate(model, frames, window=(64, 128)))
    assert not torch.equal(plain, evaluate(model, frames, window=(32, 64)))


def test_windows_cover_every_pixel_and_overlap_without_seams():
    images = torch.rand(2, 3, 100, 172)
    whole = blocks_model(images).logits
    found = sliding_logits(lambda part: blocks_model(part).logits, images, (64, 64))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)  # weights are divided out in float32


def test_overlapping_windows_are_averaged():
    starts = iter(range(10))
    images = torch.zeros(1, 3, 64, 112)
    found = sliding_logits(lambda part: torch.full((1, 1, 16, 16), float(next(starts))), images, (64, 64))[0, 0]
    assert found[:, :12].eq(0).all() and found[:, -12:].eq(1).all()
    overlap = found[8, 12:16]
    assert ((overlap > 0) & (overlap < 1)).all() and (overlap.diff() > 0).all()


def test_predictions_in_windows_are_those_that_evaluation_counts(model: torch.nn.Module):
    frames = some_frames()
    images = torch.from_numpy(frames.images).permute(0, 3, 1, 2)
    predicted = predict_labels(model, images, window=(32, 64))
    counts = evaluate(model, HostFrames(frames, torch.device("cpu")), window=(32, 64)).sum(0)
    labelled = torch.from_numpy(frames.labels) != VOID
    assert torch.equal(counts.sum(0), torch.bincount(predicted[labelled], minlength=NUM_CLASSES))


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
