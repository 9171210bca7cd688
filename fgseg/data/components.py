"""Connected components of the labels of a split: found once, stored beside its cached frames, then memory-mapped."""

import math
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock

from fgseg.data.datasets import Components

FORMAT = 1
"""Version of the files and of the search for components; raise it with every change of either."""
MIN_SHARE = 2.0**-12
"""Share of a frame's pixels, at least, of a component: 8 pixels of 128x256, 128 of 512x1024."""
MAX_COMPONENTS = 255
"""Components of a frame that are kept, the largest ones; their ids are uint8."""
MAX_THREADS = 16
"""Threads that search for components, at most."""


def load_components(folder: Path, labels: np.ndarray, foreground: range) -> Components:
    """Open the components of a cached split; finds and stores them first where they are missing.

    Processes that ask at once wait for one that builds.

    Args:
        folder: of the cached split; the components are deleted with it.
        labels: (N, H, W) uint8, the labels of the split.
        foreground: the labels that have components.

    Raises:
        OSError: the files cannot be written.
    """
    found = open_components(folder, labels)
    if found is None:
        with FileLock(folder.with_suffix(".lock")):
            found = open_components(folder, labels) or store_components(folder, find_components(labels, foreground))
    return found


def file_names(folder: Path) -> tuple[Path, Path]:
    """Return the paths of `Components.ids` and `Components.table`."""
    return folder / f"components-{FORMAT}.npy", folder / f"components-{FORMAT}-table.npy"


def open_components(folder: Path, labels: np.ndarray) -> Components | None:
    """Open the stored components, the ids memory-mapped; returns None if a file is missing or damaged."""
    ids_file, table_file = file_names(folder)
    try:
        ids = np.load(ids_file, mmap_mode="r", allow_pickle=False)
        table = np.load(table_file, allow_pickle=False)  # an empty table cannot be mapped
    except (OSError, ValueError, EOFError):
        return None
    return Components(ids, table) if ids.shape == labels.shape else None


def store_components(folder: Path, found: Components) -> Components:
    """Write components beside the cached split, and return them; raises OSError."""
    for leftover in folder.glob("components-*.part"):
        leftover.unlink()
    for file, array in zip(file_names(folder), (found.ids, found.table), strict=True):
        save_array(file, array)
    return found


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array under a temporary name in the same folder, then rename it; raises OSError."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def find_components(labels: np.ndarray, foreground: range) -> Components:
    """Find the components of the labels `foreground` in frames with labels (N, H, W) uint8."""
    ids = np.zeros(labels.shape, np.uint8)

    def fill(frame: int) -> np.ndarray:
        ids[frame], rows = frame_components(np.asarray(labels[frame]), foreground)
        return np.insert(rows, 0, frame, axis=1)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        return Components(ids, np.concatenate([*pool.map(fill, range(len(labels)))]).astype(np.int32))


def frame_components(labels: np.ndarray, foreground: range) -> tuple[np.ndarray, np.ndarray]:
    """Find the components of one frame.

    Args:
        labels: (H, W) uint8.
        foreground: the labels that have components; background and void are not among them.

    Returns:
        ids (H, W) uint8 and rows (M, 4) int64, see `Components`: id, label, first column, column after the last one.
        Components below MIN_SHARE of the pixels are left out, and the smallest ones beyond MAX_COMPONENTS.
    """
    from scipy import ndimage

    numbers, found = np.zeros(labels.shape, np.int32), list[tuple[int, int, int]]()
    boxes = ndimage.find_objects(labels.astype(np.int32) + 1, foreground.stop)  # None for an absent label
    for label, box in ((label, boxes[label]) for label in foreground if boxes[label] is not None):
        parts, count = ndimage.label(labels[box] == label, np.ones((3, 3), int))
        numbers[box] += np.where(parts > 0, parts + len(found), 0)
        first, places = box[1].start, ndimage.find_objects(parts, count)
        found += [(label, first + columns.start, first + columns.stop) for _, columns in places]
    sizes = np.bincount(numbers.ravel(), minlength=len(found) + 1)[1:]
    kept = np.argsort(-sizes, kind="stable")[:MAX_COMPONENTS]
    kept = kept[sizes[kept] >= math.ceil(MIN_SHARE * labels.size)]
    new_ids = np.zeros(len(found) + 1, np.uint8)
    new_ids[kept + 1] = np.arange(1, len(kept) + 1)
    rows = [(new_ids[k + 1], *found[k]) for k in kept]
    return new_ids[numbers], np.array(rows, np.int64).reshape(-1, 4)
