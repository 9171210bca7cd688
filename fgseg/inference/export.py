"""Write a trained model as a folder of Transformers, for `transformers.pipeline`.  Needs no torch."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fgseg.checkpoints.trial_files import CONFIG, PROCESSOR, WEIGHTS
from fgseg.data.geometry import Geometry, Size
from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from fgseg.storage.store import is_local, open_store, sync_folder


def model_files(
    architecture: bytes, weights: bytes, geometry: Geometry, card: str, window: Size | None = None
) -> dict[str, bytes]:
    """Return the contents of the files of an exported model by name.

    Args:
        architecture: contents of `config.json`.
        weights: contents of the safetensors file.
        geometry: of the training frames.
        card: the model card, Markdown.
        window: height and width of the training crops in pixels; None if training used whole frames.
    """
    return {
        CONFIG: architecture,
        WEIGHTS: weights,
        PROCESSOR: json.dumps(processor_config(geometry, window), indent=1).encode(),
        "README.md": card.encode(),
    }


def replace_files(address: str, files: Mapping[str, bytes], confirm: Callable[[], None] = lambda: None) -> None:
    """Replace everything at an address by the given files; may be repeated.

    On a disk, readers see the old files, for a moment none, then the new ones, see `replace_folder`.  A bucket has no
    such operation: there the last file holds `{}` until all others are written.

    Args:
        address: a folder or a bucket's address.
        files: contents by name; the last one is the file by which readers recognise the folder.
        confirm: called before what is there is changed; may raise.

    Raises:
        OSError: the address cannot be written.
    """
    if is_local(address):
        return replace_folder(Path(address), files, confirm)
    store, last = open_store(address), [*files][-1]
    confirm()
    store.put(last, b"{}")
    for name in store.list():
        if name not in files:
            store.delete(name)
    for name, content in files.items():
        store.put(name, content)


def remove_leftovers(address: str) -> None:
    """Delete what a killed call of `replace_files` has left beside a folder; does nothing for a bucket."""
    if is_local(address):
        folder = Path(address)
        for leftover in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(leftover, ignore_errors=True)


def replace_folder(folder: Path, files: Mapping[str, bytes], confirm: Callable[[], None] = lambda: None) -> None:
    """Replace a folder by one with the given files (contents by name), by two renames; raises OSError.

    Between the renames the folder does not exist.  If the process is killed there, the old folder remains beside it
    under a hidden name, and the next call, or `remove_leftovers`, deletes it.

    Args:
        folder, files: as above.
        confirm: called when the new folder is complete, before the renames; may raise.
    """
    remove_leftovers(str(folder))
    part, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part") for _ in range(2))
    part.mkdir(parents=True)
    try:
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(part)
        confirm()
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


BILINEAR = 2
"""Value of `PIL.Image.Resampling.BILINEAR`, which Transformers stores as a number."""


def processor_config(geometry: Geometry, window: Size | None) -> dict[str, Any]:
    """Return the `preprocessor_config.json` that stretches to the size of the frames and normalises as in training.

    `do_reduce_labels` is off since label 0, the background, is a class like the others.  Transformers ignores two
    entries of `fgseg.predict`: `fit`, the setting `data.fit`, since it can only stretch; and `crop_size`, the size of
    windows, since it crops only with `do_center_crop`.
    """
    crop = {} if window is None else {"crop_size": {"height": window[0], "width": window[1]}}
    return crop | {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": geometry.size[0], "width": geometry.size[1]},
        "fit": geometry.fit,
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_reduce_labels": False,
    }
