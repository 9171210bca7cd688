"""Decoded frames on disk: each split is decoded and resized once, then memory-mapped by every trial on the machine.

A split is a folder `<data.cache>/<key>/` of images.npy, labels.npy and meta.json.  It is built under a file lock in a
folder of another name and renamed, so readers see all of it or nothing.  It may be deleted at any time: the next call
builds it again.
"""

import hashlib
import json
import os
import shutil
import statistics
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from platformdirs import user_cache_dir

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.components import load_components
from fgseg.data.datasets import Frame, FrameSet, Progress, Reader
from fgseg.data.geometry import Geometry
from fgseg.labels import LabelSet, UnknownIdError, remap

FORMAT = 3
"""Version of the files and of the resizing; raise it with every change of either, so that old folders are not used."""
ARRAYS = ("images.npy", "labels.npy")
MAX_THREADS = 16
"""Threads that decode frames, at most; fewer on a machine with fewer cores."""


@dataclass(frozen=True)
class CacheMeta:
    """The contents of meta.json."""

    names: list[str]
    fingerprint: str
    """SHA-256 of images and labels, hex."""
    pixels: list[list[int]]
    """Pixels of each class in each frame, in the order of the labels."""
    bytes: dict[str, int]
    """Size in bytes of each file of ARRAYS; a file of another size is damaged."""
    aspect: float | None = None
    """See `FrameSet.aspect`."""


def cache_folder(cfg: DataConfig) -> Path:
    """Return the folder of everything that is cached: decoded frames, compiled steps, fitted heads."""
    return Path(cfg.cache or user_cache_dir("fgsearch")).expanduser()


def load_split(  # noqa: PLR0917  what is cached, where, and how its building is shown
    reader: Reader,
    cfg: DataConfig,
    split: str,
    frames: Sequence[Frame],
    progress: Progress | None,
    components: bool = False,
) -> FrameSet:
    """Open the cached frames of a split; builds them first if they are missing or damaged.

    Args:
        reader: decodes the frames.
        cfg: the size of the frames, their fit, and the cache folder.
        split: name, for progress and messages.
        frames: the frames of the split, in order.
        progress: called with (split, frames done, frames in total) while the split is built.
        components: whether to load the connected components of the labels too.

    Raises:
        ConfigError: a frame or label is wrong (the file is named), `val` or `test` has no class but the background,
            or the cache folder cannot be written.
    """
    base = cache_folder(cfg)
    folder = base / cache_key(reader, cfg, frames)
    cached = open_cached(folder, cfg)
    if cached is None:
        with as_config_error(base):
            cached = build_once(folder, reader, cfg, split, frames, progress)
    if split in ("val", "test"):
        check_some_class_present(split, cached, cfg.label_set())
    if components:
        with as_config_error(base):
            found = load_components(folder, cached.labels, cfg.label_set().foreground_labels)
        return replace(cached, components=found)
    return cached


def cache_key(reader: Reader, cfg: DataConfig, frames: Sequence[Frame]) -> str:
    """Hash everything that decides the cached pixels and labels: 32 hex digits."""
    root = cfg.root
    if root and Path(root).expanduser().exists():  # a hub id is not a path: do not resolve it
        root = str(Path(root).expanduser().resolve())
    content = [
        # Frames that are stretched have the key that they had before `data.fit` existed.
        [FORMAT, cfg.reader, root, cfg.height, cfg.width, *([] if cfg.fit == "stretch" else [cfg.fit])],
        sorted(reader.table.items()),
        [[frame.name, *frame.identity] for frame in frames],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@contextmanager
def as_config_error(base: Path) -> Iterator[None]:
    """Convert an OSError to a ConfigError about the cache folder `base`; readers report their own files."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"data.cache: {base} cannot be written ({reason}); free some space there or add --set data.cache=DIR"
        ) from None


def open_cached(folder: Path, cfg: DataConfig) -> FrameSet | None:
    """Memory-map a cache folder.

    Returns:
        None if one of its files is missing or has the wrong size, or its pixels were counted for fewer classes: a class
        without ids leaves the key of the cache as it is.
    """
    classes = cfg.label_set().num_classes
    try:
        meta = CacheMeta(**json.loads((folder / "meta.json").read_text(encoding="utf-8")))
        if any((folder / name).stat().st_size != meta.bytes[name] for name in ARRAYS):
            return None
        if any(len(counts) < classes for counts in meta.pixels):
            return None
        images, labels = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ARRAYS)
        pixels = np.array([counts[:classes] for counts in meta.pixels], np.int64)
        return FrameSet(images, labels, meta.names, meta.fingerprint, pixels, aspect=meta.aspect)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_once(  # noqa: PLR0917  the arguments of load_split, and the folder
    folder: Path, reader: Reader, cfg: DataConfig, split: str, frames: Sequence[Frame], progress: Progress | None
) -> FrameSet:
    """Build a cache folder unless another process has just built it; raises OSError if it cannot be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        cached = open_cached(folder, cfg)
        if cached is None:
            for leftover in [folder, *folder.parent.glob(f"{folder.name}.*.part")]:
                shutil.rmtree(leftover, ignore_errors=True)
            part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                write_split(part, reader, cfg, split, frames, progress)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            cached = open_cached(folder, cfg)
    if cached is None:
        raise FileNotFoundError(f"{folder.name} was deleted while it was built")
    return cached


def write_split(  # noqa: PLR0917  the arguments of load_split, and the folder
    folder: Path, reader: Reader, cfg: DataConfig, split: str, frames: Sequence[Frame], progress: Progress | None
) -> None:
    """Decode the frames into the memory-mapped files of a new cache folder and write meta.json last."""
    folder.mkdir()
    shapes = [(len(frames), cfg.height, cfg.width, 3), (len(frames), cfg.height, cfg.width)]
    images, labels = (allocate(folder / name, shape) for name, shape in zip(ARRAYS, shapes, strict=True))

    classes, geometry = cfg.label_set().num_classes, Geometry.of(cfg)

    def fill(i: int) -> tuple[bytes, np.ndarray, float]:
        image, found = read_labelled(reader, frames[i])
        images[i], labels[i] = geometry.frame(image), geometry.frame(found)
        digest = hashlib.sha256(images[i].tobytes() + labels[i].tobytes()).digest()
        return digest, np.bincount(labels[i].ravel(), minlength=classes)[:classes], image.shape[1] / image.shape[0]

    content, pixels, aspects = hashlib.sha256(repr(shapes).encode()), [], []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        for done, (digest, counts, aspect) in enumerate(pool.map(fill, range(len(frames))), start=1):
            content.update(digest)
            pixels.append(counts.tolist())
            aspects.append(aspect)
            if progress:
                progress(split, done, len(frames))
    for array in (images, labels):
        array.flush()
    meta = CacheMeta(
        names=[frame.name for frame in frames],
        fingerprint=content.hexdigest(),
        pixels=pixels,
        bytes={name: (folder / name).stat().st_size for name in ARRAYS},
        aspect=statistics.median(aspects) if aspects else None,
    )
    (folder / "meta.json").write_text(json.dumps(asdict(meta)), encoding="utf-8")


def allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create an array file (uint8) and reserve its disk blocks; raises OSError if the disk is full."""
    array = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Without reserved blocks a full disk kills the process with SIGBUS instead of raising OSError.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def read_labelled(reader: Reader, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Decode one frame at its own size and map its ids to labels.

    Returns:
        image (H, W, 3) uint8 RGB; labels (H, W) uint8, a class or VOID.

    Raises:
        ConfigError: a file cannot be decoded, or the label has another size than its frame or ids outside the table.
    """
    image, ids = reader.load(frame)
    if image.shape[:2] != ids.shape:
        of_image, of_label = (f"{array.shape[1]}x{array.shape[0]}" for array in (image, ids))
        raise ConfigError(f"{frame.label}: is {of_label}, its frame {frame.image} is {of_image}; both need one size")
    try:
        return image, remap(ids, reader.table)
    except UnknownIdError as error:
        raise ConfigError(describe_unknown_ids(frame.label, error.ids, reader)) from None


def describe_unknown_ids(location: str, unknown: Sequence[int], reader: Reader) -> str:
    """Format the error text for a label with ids outside the reader's table."""
    noun, verb = ("id", "is") if len(unknown) == 1 else ("ids", "are")
    listed = ", ".join(map(str, unknown))
    return f"{location}: holds {noun} {listed}, which {verb} not in {format_ids(reader.table)}; {reader.advice}"


def format_ids(table: Mapping[int, int]) -> str:
    """Format the ids of a table: `-1..33` if consecutive, else `0, 7, 255`."""
    ids = sorted(table)
    return f"{ids[0]}..{ids[-1]}" if len(ids) == ids[-1] - ids[0] + 1 else ", ".join(map(str, ids))


def check_some_class_present(split: str, frames: FrameSet, classes: LabelSet) -> None:
    """Raise ConfigError if no pixel of a split has a foreground class, so that it has no mIoU.

    Args:
        split: name, for the message.
        frames: of the split.
        classes: the label set.
    """
    if len(frames.absent(classes)) == len(classes.foreground):
        names, advice = ", no ".join(c.name for c in classes.foreground), "change data.seed or data.labels"
        raise ConfigError(f"data.{split}: its {len(frames)} frames hold no {names}; raise data.{split}, {advice}")
