"""Evaluate a trained model on the test split, once; the counts of every image are stored beside its checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from fgseg import checkpoints
from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.checkpoints.manifest import make_blob, read_weights
from fgseg.checkpoints.test_results import COUNTS, TEST_RESULT, TestResult
from fgseg.config.settings import RunConfig
from fgseg.data import load_splits
from fgseg.data.device_frames import HostFrames
from fgseg.labels import LabelSet
from fgseg.metrics.boundary_iou import boundary_counts, class_boundary_iou
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.metrics.iou import class_iou, confusion_counts, miou
from fgseg.model.segformer import build_model
from fgseg.results import EpochResult, select_epoch
from fgseg.storage.store import Store, open_store
from fgseg.training.trainer import build_accelerator


def evaluate_on_test_split(
    run: RunConfig, folder: str | Path, history: Sequence[EpochResult], attempt: int
) -> TestResult:
    """Evaluate the selected epoch of a finished trial on the test split, and store the counts of every image.

    May be repeated: the result is the same and replaces that of an earlier attempt.  In a group of processes only the
    main one calls this; it does not communicate.

    Args:
        run: all settings of the trial.
        folder: of the trial's checkpoints.
        history: every epoch of the trial.
        attempt: number of this start of the trial.

    Raises:
        ConfigError: the test split cannot be read.
        FileNotFoundError, ValueError: the weights of the epoch are missing or damaged.
        SupersededError: a higher attempt has claimed the folder.
    """
    store = open_store(folder)
    writer = Checkpoints(store, attempt)
    epoch = select_epoch(list(history), run.train.select).epoch
    manifest = checkpoints.find(store, epoch)
    if manifest is None:
        raise FileNotFoundError(f"no checkpoint of epoch {epoch} is left in {folder}")
    accelerator = build_accelerator(run)
    model = accelerator.prepare_model(build_model(run.model.name, run.label_set()), evaluation_mode=True)
    model.load_state_dict(load_safetensors(read_weights(store, manifest)))
    # Read once: on the GPU these frames would evict those of the next trial.
    frames = HostFrames(load_splits(run.data, ("test",))["test"], accelerator.device)
    confusion, boundary = confusion_per_image(model, frames, confusion_counts, boundary_counts, window=run.data.window)
    writer.check_current()
    return save_test_result(store, epoch, attempt, confusion, boundary, run.label_set())


def save_test_result(  # noqa: PLR0917  what the result is of, and its counts
    store: Store, epoch: int, attempt: int, confusion: Tensor, boundary: Tensor, classes: LabelSet
) -> TestResult:
    """Write the counts of every image, then the manifest that names them, and delete those of earlier attempts.

    Args:
        store: of the trial.
        epoch: number of the evaluated epoch.
        attempt: number of this start of the trial.
        confusion: (N, C, C) int64, rows truth.
        boundary: (N, C, 2) int64, see `boundary_counts`.
        classes: the label set of the C classes.
    """
    data = save_safetensors({"confusion": confusion.to(torch.int32), "boundary": boundary.to(torch.int32)})
    iou = class_iou(confusion.sum(0), classes)
    outcome = TestResult(
        epoch=epoch,
        attempt=attempt,
        images=len(confusion),
        miou=miou(iou),
        iou=iou,
        boundary_iou=class_boundary_iou(boundary.sum(0), iou, classes),
        confusion=confusion.sum(0).tolist(),
        boundary=boundary.sum(0).tolist(),
        thin=[c.key for c in classes.thin],
        blob=make_blob(f"counts-{attempt:06d}.safetensors", data),
    )
    store.put(outcome.blob.name, data)
    store.put(outcome.name, json.dumps(outcome.to_json()).encode())
    for pattern in (TEST_RESULT, COUNTS):
        for name in store.list():
            if (found := pattern.fullmatch(name)) and int(found[1]) < attempt:
                store.delete(name)
    return outcome
