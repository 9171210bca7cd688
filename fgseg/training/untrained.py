"""Evaluate a checkpoint before any training, as the reference of a study."""

import hashlib
import json
import time

from filelock import FileLock, Timeout

from fgseg.checkpoints.untrained_result import UNTRAINED, UntrainedResult, read_untrained
from fgseg.config.settings import RunConfig
from fgseg.data import fingerprint, load_splits
from fgseg.data.cache import cache_folder
from fgseg.data.device_frames import Frames, HostFrames, load_to_device
from fgseg.metrics.boundary_iou import boundary_counts
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.metrics.iou import class_iou, confusion_counts, miou
from fgseg.model.class_names import checkpoint_folder, own_labels
from fgseg.model.head_transfer import load_grouped
from fgseg.storage.store import open_store
from fgseg.training.trainer import build_accelerator


def evaluate_untrained_once(run: RunConfig, address: str, split: str) -> None:
    """Store the result of a run's checkpoint in a study's folder, unless the folder has it.

    Does nothing where the model starts from random weights, or from a checkpoint without any of the classes.  Of
    several processes on one machine the first one evaluates, and the others return at once.

    Args:
        run: all settings of a trial.
        address: of the study's folder.
        split: val, or test for repeats.

    Raises:
        ConfigError: the data or the checkpoint cannot be read.
    """
    store = open_store(address)
    labels = own_labels(run.model, run.label_set())
    if labels is None or read_untrained(store) is not None:
        return
    folder = cache_folder(run.data) / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"untrained-{hashlib.sha256(address.encode()).hexdigest()[:32]}.lock", timeout=0)
    try:
        with lock:
            if read_untrained(store) is None:
                result = evaluate_untrained(run, labels, split)
                store.put(UNTRAINED, json.dumps(result.to_json()).encode())
    except Timeout:
        return


def evaluate_untrained(run: RunConfig, labels: list[int], split: str) -> UntrainedResult:
    """Evaluate a checkpoint with its own head, with the precision of the training.

    In a group of processes only the main one calls this; it does not communicate.

    Args:
        run: all settings.
        labels: label of each class of the checkpoint.
        split: val or test.
    """
    accelerator, classes = build_accelerator(run), run.label_set()
    names = ("train", "val", "test") if split == "test" else ("train", "val")
    splits = load_splits(run.data, names, components=run.copy_paste.needs_components)  # as the training loads them
    if split == "test":  # read once: on the GPU these frames would evict those of the training
        frames: Frames = HostFrames(splits["test"], accelerator.device)
    else:
        frames = load_to_device(splits, run.data.device, accelerator.device)["val"]
    grouped = load_grouped(checkpoint_folder(run.model.name), labels, classes.num_classes)
    model = accelerator.prepare_model(grouped, evaluation_mode=True)
    counters = (confusion_counts, boundary_counts) if split == "test" else (confusion_counts,)
    confusion, *boundary = confusion_per_image(model, frames, *counters, window=run.data.window)
    iou = class_iou(confusion.sum(0), classes)
    return UntrainedResult(
        split=split,
        data=fingerprint(splits),
        seconds=time.time(),
        miou=miou(iou),
        iou=iou,
        confusion=confusion.tolist(),
        boundary=boundary[0].tolist() if boundary else [],
        thin=[c.key for c in classes.thin],
    )
