"""Data sets: `load_splits` opens train, val and test, decoded once; `check` finds mistakes without decoding.

Readers, PIL and the cache are imported on first use, so that `import fgseg.data` stays fast.
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence

from fgseg.config.settings import DataConfig
from fgseg.data.datasets import FrameSet, Progress, Reader

__all__ = [
    "FrameSet",
    "Progress",
    "absent_notes",
    "aspect_notes",
    "check",
    "data_notes",
    "fingerprint",
    "load_splits",
    "open_reader",
]

READERS = {
    "streets": ("fgseg.data.streets.reader", "StreetsReader"),
    "cityscapes": ("fgseg.data.cityscapes", "CityscapesReader"),
    "folder": ("fgseg.data.folder", "FolderReader"),
    "hub": ("fgseg.data.hub", "HubReader"),
}
"""Module and class of each value of the setting `data.reader`."""

BUILD_ORDER = ("val", "test", "train")
"""Order in which splits are decoded: val and test are short, so their mistakes are reported before train is decoded."""
MAX_ASPECT_CHANGE = 0.05
"""Relative difference of the aspect ratios of pictures and frames above which `aspect_notes` reports it."""


def open_reader(cfg: DataConfig) -> Reader:
    """Return the reader named by `data.reader`; raises ConfigError if `data.root` has not its layout."""
    module, name = READERS[cfg.reader]
    reader: Reader = getattr(importlib.import_module(module), name)(cfg)
    return reader


def check(cfg: DataConfig) -> None:
    """Check the section `data` without decoding a frame, in under a second.

    A hub id is skipped, since listing its frames needs the network; `load_splits` checks it.

    Raises:
        ConfigError: the data folder is missing or empty, a frame has no label, a split is larger than the data set, or
            the id table of the folder reader is wrong.
    """
    reader = open_reader(cfg)
    if not reader.remote:
        reader.splits()


def load_splits(
    cfg: DataConfig,
    names: Sequence[str] = ("train", "val", "test"),
    progress: Progress | None = None,
    components: bool = False,
) -> dict[str, FrameSet]:
    """Draw the splits and open their cached frames; frames not in the cache are decoded and resized first.

    May be called by several processes at once: one builds a split, the others wait for it.

    Args:
        cfg: the section `data`; only `cfg.seed` and the sizes of the splits decide which frames are drawn.
        names: splits to open, any of train, val and test; the files of the other splits are not read.
        progress: called with (split, frames done, frames in total) while a split is decoded.
        components: whether to find the connected components of the training labels, for copy-paste of components.

    Returns:
        A FrameSet per name, in the order of `names`; no frame is in two splits.

    Raises:
        ConfigError: any mistake that `check` finds; a file cannot be decoded; a label has another size than its frame
            or ids outside the table (the file is named); val or test has no class but the background; the cache folder
            cannot be written.
    """
    from fgseg.data import cache

    reader = open_reader(cfg)
    frames = reader.splits()
    order = [split for split in BUILD_ORDER if split in names]
    opened = {
        split: cache.load_split(reader, cfg, split, frames[split], progress, components and split == "train")
        for split in order
    }
    return {name: opened[name] for name in names}


def data_notes(cfg: DataConfig, splits: Mapping[str, FrameSet]) -> list[str]:
    """Return the lines of `absent_notes` and `aspect_notes`, which a command prints before it trains."""
    return [*absent_notes(cfg, splits), *aspect_notes(cfg, splits)]


def absent_notes(cfg: DataConfig, splits: Mapping[str, FrameSet]) -> list[str]:
    """Return a line for each of the splits val and test that lacks foreground classes; no mean counts these."""
    absent = {name: splits[name].absent(cfg.label_set()) for name in ("val", "test") if name in splits}
    return [
        f"data.{split}: its {len(splits[split])} frames hold no {', no '.join(c.name for c in classes)}; "
        "left out of the means over classes"
        for split, classes in absent.items()
        if classes
    ]


def aspect_notes(cfg: DataConfig, splits: Mapping[str, FrameSet]) -> list[str]:
    """Return a line if the pictures of the largest split have another aspect ratio than the frames, at the median.

    The line says what `data.fit` then does to them. Without pictures, or in a cache of an earlier version, which does
    not record aspect ratios, there is none.
    """
    pictures, frames = max(splits.values(), key=len).aspect, cfg.width / cfg.height
    if pictures is None:
        return []
    change = max(pictures / frames, frames / pictures) - 1
    if change <= MAX_ASPECT_CHANGE:
        return []
    share = 1 - 1 / (1 + change)
    effect = {
        "stretch": f"stretches their proportions by {change:.0%}",
        "pad": f"fills {share:.0%} of each frame with void",
        "crop": f"cuts off {share:.0%} of each picture",
    }
    return [
        f"data.fit: the pictures are {pictures:.2f} times as wide as high at the median, frames of "
        f"{cfg.height}x{cfg.width} {frames:.2f} times; {cfg.fit} {effect[cfg.fit]}; change data.height, data.width or "
        "data.fit if that is not intended"
    ]


def fingerprint(splits: Mapping[str, FrameSet]) -> str:
    """Return the SHA-256 (hex) of the pixels and labels of the splits, independent of paths and file names."""
    content = "\n".join(f"{name} {splits[name].fingerprint}" for name in sorted(splits))
    return hashlib.sha256(content.encode()).hexdigest()
