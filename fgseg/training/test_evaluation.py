"""Judge a trained model on the test split, once; the counts of every image stay beside its checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.checkpoints.manifest import list_manifests, make_blob, read_weights
from fgseg.checkpoints.test_results import COUNTS, TEST_RESULT, TestResult
from fgseg.config.settings import RunConfig
from fgseg.data import load_splits
from fgseg.data.device_frames import HostFrames
from fgseg.labels import FOREGROUND
from fgseg.metrics.boundary_iou import boundary_counts, boundary_iou
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.metrics.iou import class_iou, confusion_counts, miou
from fgseg.results import EpochResult, select_epoch
from fgseg.storage.store import Store, open_store
from fgseg.training.trainer import build_training_state


def evaluate_on_test_split(
    run: RunConfig, folder: str | Path, history: Sequence[EpochResult], attempt: int
) -> TestResult:
    """Judge the epoch that stands for a finished trial on the test split, and keep what every image gave.

    Repeating it gives the same and replaces what an earlier attempt left.

    Args:
        run: all settings of the trial.
        folder: of its checkpoints.
        history: every epoch of it.
        attempt: number of this start of the trial.

    Raises:
        ConfigError: the test split cannot be read.
        FileNotFoundError, ValueError: the weights of the epoch are gone or damaged.
        SupersededError: a higher attempt works in the folder.
    """
    store = open_store(folder)
    checkpoints = Checkpoints(store, attempt)
    epoch = select_epoch(list(history), run.train.select).epoch
    manifest = next((m for m in list_manifests(store) if m.epoch == epoch), None)
    if manifest is None:
        raise FileNotFoundError(f"no checkpoint of epoch {epoch} is left in {folder}")
    state = build_training_state(run, 1)
    state.model.load_state_dict(load_safetensors(read_weights(store, manifest)))
    # One pass: these frames need no place on the GPU, from which they would drive those of the next trial.
    frames = HostFrames(load_splits(run.data, ("test",))["test"], state.accelerator.device)
    with state.accelerator.autocast():
        confusion, boundary = confusion_per_image(state.model, frames, confusion_counts, boundary_counts)
    checkpoints.check_current()
    return save_test_result(store, epoch, attempt, confusion, boundary)


def save_test_result(store: Store, epoch: int, attempt: int, confusion: Tensor, boundary: Tensor) -> TestResult:
    """Write the counts of every image, then the manifest that names them, and drop those of earlier attempts.

    Args:
        store: the trial's.
        epoch: the one that was judged.
        attempt: number of this start of the trial.
        confusion: (N, 7, 7) int64, rows truth.
        boundary: (N, 7, 2) int64, see `boundary_counts`.
    """
    data = save_safetensors({"confusion": confusion.to(torch.int32), "boundary": boundary.to(torch.int32)})
    iou, rims = class_iou(confusion.sum(0)), boundary_iou(boundary.sum(0)).tolist()
    outcome = TestResult(
        epoch=epoch,
        attempt=attempt,
        images=len(confusion),
        miou=miou(iou),
        iou=iou,
        boundary_iou={c.key: rims[c.label] for c in FOREGROUND},
        confusion=confusion.sum(0).tolist(),
        boundary=boundary.sum(0).tolist(),
        blob=make_blob(f"counts-{attempt:06d}.safetensors", data),
    )
    store.put(outcome.blob.name, data)
    store.put(outcome.name, json.dumps(outcome.to_json()).encode())
    for pattern in (TEST_RESULT, COUNTS):
        for name in store.list():
            if (found := pattern.fullmatch(name)) and int(found[1]) < attempt:
                store.delete(name)
    return outcome
