"""Fit the head that a model inherits from its checkpoint, once per checkpoint, training frames and label set."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from fgseg.config.settings import RunConfig
from fgseg.data import FrameSet
from fgseg.data.batches import normalise
from fgseg.data.cache import as_config_error, cache_folder
from fgseg.devices import find_device
from fgseg.model.class_names import checkpoint_folder, inherited_labels
from fgseg.model.head_transfer import HeadRows, load_grouped, sample_features, transfer_rows
from fgseg.storage.store import LocalStore

FORMAT = 1
"""Version of the fit; raise it with every change of its result, so that old rows are not used."""
FRAMES = 64
"""Training frames on which the head is fitted, at most."""
BATCH = 4
"""Frames per forward pass."""


def inherited_rows(run: RunConfig, frames: FrameSet) -> HeadRows | None:
    """Return the classifier that a model inherits from its checkpoint, for the label set of the run.

    The rows are kept in the folder `heads` of the cache of frames.  May be called by several processes at once: one
    fits the rows, the others wait for them.

    Args:
        run: all settings.
        frames: the training frames; labels are not read.

    Returns:
        None for a new head, and where the checkpoint has the same classes, so that its head is loaded as it is.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or the cache folder cannot be written.
    """
    classes = run.label_set()
    labels = inherited_labels(run.model, classes)
    if labels is None or labels == list(range(classes.num_classes)):
        return None
    folder = checkpoint_folder(run.model.name)
    base = cache_folder(run.data) / "heads"
    name = f"{fit_key(folder, labels, classes.num_classes, frames)}.safetensors"
    with as_config_error(base):
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / f"{name}.lock"):
            rows = read_rows(base / name)
            if rows is None:
                rows = fit_to_frames(folder, labels, classes.num_classes, frames)
                LocalStore(base).put(name, save_safetensors(vars(rows)))
    return rows


def fit_key(folder: Path, labels: Sequence[int], classes: int, frames: FrameSet) -> str:
    """Hash everything that decides the rows: 32 hex digits.

    Args:
        folder: of the checkpoint.
        labels: label of each class of the checkpoint.
        classes: number of labels.
        frames: the training frames.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, FRAMES, labels, classes, frames.fingerprint]).encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def read_rows(path: Path) -> HeadRows | None:
    """Read fitted rows; None if the file is missing or damaged."""
    try:
        return HeadRows(**load_safetensors(path.read_bytes()))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def fit_to_frames(folder: Path, labels: Sequence[int], classes: int, frames: FrameSet) -> HeadRows:
    """Fit the rows to the checkpoint's own predictions on evenly spaced frames; on a GPU if there is one.

    Args:
        folder: of the checkpoint.
        labels: label of each class of the checkpoint.
        classes: number of labels.
        frames: the training frames.

    Returns:
        The rows, on the CPU.
    """
    device = find_device("auto")
    grouped = load_grouped(folder, labels, classes).to(device)
    index = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    generator = torch.Generator().manual_seed(0)
    parts = []
    for first in range(0, len(index), BATCH):
        images = torch.from_numpy(np.asarray(frames.images[index[first : first + BATCH]])).permute(0, 3, 1, 2)
        parts.append(sample_features(grouped, normalise(images.to(device)), generator))
    features, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    rows = transfer_rows(grouped, features, targets)
    return HeadRows(rows.weight.cpu(), rows.bias.cpu())
