"""Decoded frames on disk: each split is decoded and resized once, then memory-mapped by every trial on the machine.

A split is a folder `<data.cache>/<key>/` of images.npy, labels.npy and meta.json.  It is built under a lock in a folder
of another name and renamed, so it is there whole or not at all; it may be deleted at any time and is built again.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image
from platformdirs import user_cache_dir

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame, FrameSet, Progress, Reader
from fgseg.labels import FOREGROUND, NUM_CLASSES, UnknownIdError, remap

FORMAT = 2
"""To be raised with every change of what the files hold or how frames are resized."""
ARRAYS = ("images.npy", "labels.npy")


class Entry(NamedTuple):
    """An opened cache folder."""

    frames: FrameSet
    pixels: list[int]
    """Pixels of each class in the whole split."""


def load(reader: Reader, cfg: DataConfig, split: str, frames: Sequence[Frame], progress: Progress | None) -> FrameSet:
    """Open a split's cached frames, building them first where they are missing or damaged.

    Args:
        reader: decodes the frames.
        cfg: height, width and cache folder.
        split: name, for progress and messages.
        frames: those of the split, in order.
        progress: called while building only.

    Raises:
        ConfigError: a frame or label is wrong (its file named), `val` or `test` lacks one of the six classes, or the
            cache folder cannot be written.
    """
    base = Path(cfg.cache).expanduser() if cfg.cache else Path(user_cache_dir("fgsearch"))
    folder = base / cache_key(reader, cfg, frames)
    entry = open_entry(folder)
    if entry is None:
        with told_as_cache_errors(base):
            tell = partial(progress, split) if progress else None
            entry = build_once(folder, reader, cfg, frames, tell)
    if split in ("val", "test"):
        check_classes(split, entry.pixels, len(frames))
    return entry.frames


def cache_key(reader: Reader, cfg: DataConfig, frames: Sequence[Frame]) -> str:
    """Hash all that decides the cached pixels and labels."""
    root = cfg.root
    if root and Path(root).expanduser().exists():  # a hub id is no path: it means the same in every folder
        root = str(Path(root).expanduser().resolve())
    content = [
        [FORMAT, cfg.reader, root, cfg.height, cfg.width],
        sorted(reader.table.items()),
        [[frame.name, *frame.identity] for frame in frames],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@contextmanager
def told_as_cache_errors(base: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a ConfigError; readers have told of their own files before."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"data.cache: {base} cannot be written ({reason}); free some space there or add --set data.cache=DIR"
        ) from None


def open_entry(folder: Path) -> Entry | None:
    """Map a cache folder into memory; None where it is missing, or a file of it is missing or has another size."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != meta["bytes"][name] for name in ARRAYS):
            return None
        images, labels = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ARRAYS)
        return Entry(FrameSet(images, labels, meta["names"], meta["fingerprint"]), meta["pixels"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_once(
    folder: Path, reader: Reader, cfg: DataConfig, frames: Sequence[Frame], tell: Callable[[int, int], None] | None
) -> Entry:
    """Build a cache folder unless another process has done so meanwhile; raises OSError where it cannot be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        entry = open_entry(folder)
        if entry is None:
            for leftover in [folder, *folder.parent.glob(f"{folder.name}.*.part")]:
                shutil.rmtree(leftover, ignore_errors=True)
            part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                write(part, reader, cfg, frames, tell)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            entry = open_entry(folder)
    if entry is None:
        raise FileNotFoundError(f"{folder.name} was deleted while it was built")
    return entry


def write(
    folder: Path, reader: Reader, cfg: DataConfig, frames: Sequence[Frame], tell: Callable[[int, int], None] | None
) -> None:
    """Decode the frames straight into the files of a new cache folder, meta.json last."""
    folder.mkdir()
    shapes = [(len(frames), cfg.height, cfg.width, 3), (len(frames), cfg.height, cfg.width)]
    images, labels = (allocate(folder / name, shape) for name, shape in zip(ARRAYS, shapes, strict=True))

    def fill(i: int) -> tuple[bytes, np.ndarray]:
        images[i], labels[i] = prepare(reader, frames[i], cfg.height, cfg.width)
        digest = hashlib.sha256(images[i].tobytes() + labels[i].tobytes()).digest()
        return digest, np.bincount(labels[i].ravel(), minlength=NUM_CLASSES)[:NUM_CLASSES]

    content, pixels = hashlib.sha256(repr(shapes).encode()), np.zeros(NUM_CLASSES, dtype=np.int64)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for done, (digest, counts) in enumerate(pool.map(fill, range(len(frames))), start=1):
            content.update(digest)
            pixels += counts
            if tell:
                tell(done, len(frames))
    for array in (images, labels):
        array.flush()
    meta = {
        "names": [frame.name for frame in frames],
        "fingerprint": content.hexdigest(),
        "pixels": pixels.tolist(),
        "bytes": {name: (folder / name).stat().st_size for name in ARRAYS},
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create an array file (uint8) with all its blocks; raises OSError where the disk is full."""
    array = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # A mapped file without blocks would kill the process with SIGBUS, instead of an error, when the disk fills up.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def prepare(reader: Reader, frame: Frame, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode one frame and bring it to size: image (height, width, 3) bilinear, labels (height, width) nearest, uint8.

    Raises:
        ConfigError: a file cannot be decoded, the label has another size than its frame, or ids outside the table.
    """
    image, ids = reader.load(frame)
    if image.shape[:2] != ids.shape:
        of_image, of_label = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, ids))
        raise ConfigError(f"{frame.label}: is {of_label}, its frame {frame.image} is {of_image}; both need one size")
    try:
        labels = remap(ids, reader.table)
    except UnknownIdError as error:
        raise ConfigError(describe_unknown_ids(frame.label, error.ids, reader)) from None
    size = (width, height)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def describe_unknown_ids(place: str, unknown: Sequence[int], reader: Reader) -> str:
    """Name the ids of a label that its table lacks, and what the table holds."""
    noun, verb = ("id", "is") if len(unknown) == 1 else ("ids", "are")
    listed = ", ".join(map(str, unknown))
    return f"{place}: holds {noun} {listed}, which {verb} not in {span(reader.table)}; {reader.advice}"


def span(table: Mapping[int, int]) -> str:
    """The ids of a table, in short: `-1..33` without gaps, else `0, 7, 255`."""
    ids = sorted(table)
    return f"{ids[0]}..{ids[-1]}" if len(ids) == ids[-1] - ids[0] + 1 else ", ".join(map(str, ids))


def check_classes(split: str, pixels: Sequence[int], frames: int) -> None:
    """Raise ConfigError where the frames of a split lack one of the six classes, which then could not be scored."""
    absent = [c.name for c in FOREGROUND if pixels[c.label] == 0]
    if absent:
        raise ConfigError(
            f"data.{split}: its {frames} frames hold no {', no '.join(absent)}; raise data.{split} or change data.seed"
        )
