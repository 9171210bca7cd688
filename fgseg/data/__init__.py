"""Frames and labels of any data set as train, val and test, decoded once: `load_splits`, and cheap mistakes: `check`.

Readers, PIL and the cache are imported on first use, so that `import fgseg.data` stays quick.
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence

from fgseg.config.settings import DataConfig
from fgseg.data.datasets import FrameSet, Progress, Reader

__all__ = ["FrameSet", "Progress", "check", "fingerprint", "load_splits"]

READERS = {
    "streets": ("fgseg.data.streets.reader", "StreetsReader"),
    "cityscapes": ("fgseg.data.cityscapes", "CityscapesReader"),
    "folder": ("fgseg.data.folder", "FolderReader"),
    "hub": ("fgseg.data.hub", "HubReader"),
}
"""The module and class behind each value of data.reader."""

BUILD_ORDER = ("val", "test", "train")
"""The short splits first: a mistake in the validation data shows before the long build of the train split."""


def open_reader(cfg: DataConfig) -> Reader:
    """The reader that data.reader names; raises ConfigError where data.root cannot be one of its data sets."""
    module, name = READERS[cfg.reader]
    reader: Reader = getattr(importlib.import_module(module), name)(cfg)
    return reader


def check(cfg: DataConfig) -> None:
    """Find the mistakes that show without decoding a frame, in under a second.

    A data set on the hub is not asked here (that needs the network); `load_splits` tells what is wrong with it.

    Raises:
        ConfigError: the data folder is missing or empty, a frame has no label, a split is larger than the data, or the
            id table of the folder reader is wrong.
    """
    reader = open_reader(cfg)
    if not reader.remote:
        reader.splits()


def load_splits(
    cfg: DataConfig, names: Sequence[str] = ("train", "val", "test"), progress: Progress | None = None
) -> dict[str, FrameSet]:
    """Draw the splits and open their cached frames, which are decoded and resized first where they are not there yet.

    Args:
        cfg: the section `data`; `cfg.seed` alone decides which frames are drawn.
        names: splits to open, out of train, val and test; the others are neither decoded nor checked inside.
        progress: told (split, frames done, frames in all) while a split is being built, and only then.

    Returns:
        A FrameSet per name, in the order of `names`; no frame is in two of them.

    Raises:
        ConfigError: all that `check` finds; a file that cannot be decoded, a label of another size than its frame or
            with ids outside the table (each file named); a val split without one of the six classes; a cache folder
            that cannot be written.
    """
    from fgseg.data import cache

    reader = open_reader(cfg)
    frames = reader.splits()
    order = [split for split in BUILD_ORDER if split in names]
    opened = {split: cache.load(reader, cfg, split, frames[split], progress) for split in order}
    return {name: opened[name] for name in names}


def fingerprint(splits: Mapping[str, FrameSet]) -> str:
    """Identify the pixels and labels of the splits, wherever the data lie and whatever the files are called (hex)."""
    content = "\n".join(f"{name} {splits[name].fingerprint}" for name in sorted(splits))
    return hashlib.sha256(content.encode()).hexdigest()
