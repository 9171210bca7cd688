"""Choose the validation frames on which the best trial and the start point differ most, as pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fgseg import checkpoints
from fgseg.checkpoints.manifest import read_weights
from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.labels import VOID, LabelSet
from fgseg.model.class_names import checkpoint_folder, own_labels
from fgseg.storage.store import Store
from fgseg.visual.label_images import changes, overlay, to_width
from search.ledger.records import TrialRecord
from search.report.summary import Summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COUNT = 4
"""Frames that a report shows."""
CPU_BUDGET_PX, GPU_BUDGET_PX = 2**23, 2**28
"""Pixels predicted to choose frames from; on the CPU 16 frames of 512x1024 or 256 of 128x256, which takes seconds."""
MAX_WIDTH_PX = 512
"""Maximum width of a picture; wider ones are reduced."""
CHANGED = "changed pixels"
"""Name of the picture of `fgseg.visual.label_images.changes`."""


@dataclass(frozen=True)
class ShownFrame:
    """One frame: photo (H, W, 3) uint8, the others (H, W) uint8 labels."""

    name: str
    photo: np.ndarray
    truth: np.ndarray
    start: np.ndarray
    best: np.ndarray
    classes: LabelSet
    """Label set of the labels."""
    untrained: np.ndarray | None = None
    """Prediction of the untrained checkpoint; None where it has none of the classes."""

    def panels(self) -> dict[str, np.ndarray]:
        """Return the pictures by name, (h, w, 3) uint8, at most MAX_WIDTH_PX wide: the last one is CHANGED."""
        own = {} if self.untrained is None else {"checkpoint": self.untrained}
        named = {"truth": self.truth, **own, "start": self.start, "best": self.best}
        photo, *arrays = to_width(MAX_WIDTH_PX, self.classes, self.photo, *named.values())
        small = dict(zip(named, arrays, strict=True))
        drawn = {name: overlay(photo // 2, labels, self.classes, 0.75) for name, labels in small.items()}
        return {"photo": photo, **drawn, CHANGED: changes(small["truth"], small["start"], small["best"])}


@dataclass(frozen=True)
class Frames:
    """The chosen frames, and a sentence that explains how they were chosen or why there are none."""

    shown: tuple[ShownFrame, ...]
    note: str


def choose_frames(summary: Summary, store_of: Callable[[int], Store]) -> Frames:
    """Predict validation frames with the weights of trial 0 and of the best trial; choose those that differ most.

    Args:
        summary: of the study.
        store_of: returns the store of a trial's files by its number.

    Returns:
        No frames, and the reason, if either trial or its weights are missing.
    """
    if summary.best is None:
        return Frames((), "No trial has finished.")
    if summary.start is None:
        return Frames((), "Trial 000, the start point, has not finished, so the best trial has no reference.")
    if summary.best.number == summary.start.number:
        return Frames((), "The start point itself is the best trial so far, so no frame differs.")
    try:
        return compare_predictions(summary, summary.start, summary.best, store_of)
    except FileNotFoundError as error:
        return Frames((), f"The weights of trial 000 or of the best are gone ({error}).")
    except (ConfigError, ValueError, RuntimeError) as error:  # the last where a GPU is full of trials
        return Frames((), f"The frames cannot be predicted: {error}.")


def compare_predictions(
    summary: Summary, start: TrialRecord, best: TrialRecord, store_of: Callable[[int], Store]
) -> Frames:
    """Predict with both trials' weights and choose frames.

    Raises:
        FileNotFoundError: a trial has no checkpoint of its selected epoch.
        ConfigError: the data set cannot be read.
        ValueError: the weights are damaged.
        RuntimeError: torch fails, e.g. out of GPU memory.
    """
    import torch

    from fgseg.data import load_splits

    weights = [chosen_weights(store_of(trial.number), trial) for trial in (start, best)]
    run = build([Layer("study", summary.settings)])
    frames = load_splits(run.data, ("val",))["val"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    budget = CPU_BUDGET_PX if device.type == "cpu" else GPU_BUDGET_PX
    count = min(len(frames), max(COUNT, budget // frames.labels[0].size))
    index = np.linspace(0, len(frames) - 1, count).round().astype(int)
    photos, truth = np.asarray(frames.images[index]), np.asarray(frames.labels[index])
    images = torch.from_numpy(photos).permute(0, 3, 1, 2)
    before, after = predict_trained(run, weights, images, device)
    order = np.argsort(-difference(run.label_set(), truth, before, after), kind="stable")[:COUNT]
    untrained = predict_untrained(run, images[order], device)
    shown = (
        ShownFrame(frames.names[index[k]], photos[k], truth[k], before[k], after[k], run.label_set(), own)
        for k, own in zip(order, untrained, strict=True)
    )
    among = "all" if count == len(frames) else f"{count} of the"
    note = f"Of {among} {len(frames)} validation frames, those whose class IoU differ most between the two trials."
    return Frames(tuple(shown), note)


def predict_trained(
    run: RunConfig, weights: Sequence[bytes], images: "Tensor", device: "torch.device"
) -> list[np.ndarray]:
    """Predict labels (N, H, W) uint8 of images (N, 3, H, W) uint8 with each of several weights."""
    from safetensors.torch import load

    from fgseg.metrics.evaluator import predict_labels
    from fgseg.model.segformer import build_model

    model, predicted = build_model(run.model.name, run.label_set()).to(device), []
    for state in weights:
        model.load_state_dict(load(state))
        predicted.append(predict_labels(model, images, run.data.window).numpy())
    return predicted


def predict_untrained(run: RunConfig, images: "Tensor", device: "torch.device") -> list[np.ndarray | None]:
    """Predict labels (H, W) uint8 of each image with the untrained checkpoint; None where it lacks all classes."""
    from fgseg.metrics.evaluator import predict_labels
    from fgseg.model.head_transfer import load_grouped

    classes = run.label_set()
    labels = own_labels(run.model, classes)
    if labels is None:
        return [None] * len(images)
    grouped = load_grouped(checkpoint_folder(run.model.name), labels, classes.num_classes).to(device)
    return [*predict_labels(grouped, images, run.data.window).numpy()]


def chosen_weights(store: Store, trial: TrialRecord) -> bytes:
    """Read the weights of a trial's selected epoch; raises FileNotFoundError or ValueError."""
    manifest = None if trial.selected is None else checkpoints.find(store, trial.selected)
    if manifest is None:
        raise FileNotFoundError(f"trial {trial.number:03d} has no checkpoint of epoch {trial.selected}")
    return read_weights(store, manifest)


def difference(classes: LabelSet, truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Sum the absolute differences of two predictions' IoU over the classes, frame by frame.

    Args:
        classes: the label set.
        truth, before, after: (N, H, W) uint8 labels.

    Returns:
        (N,) float64, at most the number of foreground classes; every class has the same weight, however few its pixels.
    """
    labelled = truth != VOID
    total = np.zeros(len(truth))
    for c in classes.foreground:
        real = truth == c.label
        iou = [
            ratio((real & hit).sum((1, 2)), ((real | hit) & labelled).sum((1, 2)))
            for hit in (before == c.label, after == c.label)
        ]
        total += abs(iou[1] - iou[0])
    return total


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide pixel counts (N,); 0 where both are 0."""
    return part / np.maximum(whole, 1)
