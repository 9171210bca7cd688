"""A trained model as an ordinary Transformers folder, for `transformers.pipeline`.  Needs no torch."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgseg.checkpoints.trial_files import CONFIG, PROCESSOR, WEIGHTS
from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from fgseg.storage.store import is_local, open_store


def model_files(architecture: bytes, weights: bytes, size: tuple[int, int], card: str) -> dict[str, bytes]:
    """The files of an exported model by name.

    Args:
        architecture: its `config.json`.
        weights: a safetensors file.
        size: height and width of its training frames, in pixels.
        card: Markdown.
    """
    return {
        CONFIG: architecture,
        WEIGHTS: weights,
        PROCESSOR: json.dumps(processor(*size), indent=1).encode(),
        "README.md": card.encode(),
    }


def replace_files(address: str, files: Mapping[str, bytes]) -> None:
    """Write files in the place of what is at an address; the last of them is the one that says what they are.

    On a disk a reader never sees half of it.  In a bucket the last one is empty while the others are written.
    Raises OSError.
    """
    if is_local(address):
        return replace_folder(Path(address), files)
    store, last = open_store(address), [*files][-1]
    store.put(last, b"{}")
    for name in store.list():
        if name not in files:
            store.delete(name)
    for name, content in files.items():
        store.put(name, content)


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a folder that takes the place of the one of that name; a reader never sees half of it.

    Between the two renames there is no folder for a moment; killed just then, the old one stays beside it, hidden, and
    the next call cleans up.  Raises OSError.
    """
    for leftover in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part") for _ in range(2))
    part.mkdir(parents=True)
    try:
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


BILINEAR = 2
"""PIL's number of the filter."""


def processor(height: int, width: int) -> dict[str, Any]:
    """The image processor that does what the readers and `normalise` do: resize, divide by 255, normalise.

    `do_reduce_labels` is off: label 0 is the background, a class like the others.
    """
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_reduce_labels": False,
    }
