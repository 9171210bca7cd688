"""The protocol of a data set's reader, and the random draw of train, val and test from its frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.labels import LabelSet, SegClass

Progress = Callable[[str, int, int], None]
"""Callback with the name of a split, the frames done and the frames in total."""


@dataclass(frozen=True)
class Frame:
    """One frame of a data set, not decoded."""

    name: str
    """Unique in the data set; splits are drawn from the frames sorted by name."""
    image: str
    """Location of the image, for messages: a file, or the row of a table."""
    label: str
    """Location of the label, for messages."""
    identity: tuple[int | str, ...]
    """Changes when the content changes, e.g. sizes and modification times of the files; part of the cache key."""


class Reader(Protocol):
    """Lists and decodes the frames of one data set; constructed from the section `data` of the settings."""

    table: Mapping[int, int]
    """Maps each id of the data set to a label (a class's, or VOID)."""
    advice: str
    """Remedy for an id that is not in the table; the end of an error message."""
    remote: bool
    """Whether listing the frames needs the network."""

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of train, val and test without decoding them; raises ConfigError as `fgseg.data.check`."""

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode one frame; several threads call it at once.

        Returns:
            The image (H, W, 3) uint8 RGB and the ids (H, W) of any integer type. The caller compares the two sizes.

        Raises:
            ConfigError: a file cannot be decoded, or is not an image or a label.
        """


@dataclass(frozen=True)
class Components:
    """The connected components (8 neighbours) of the foreground classes of N frames."""

    ids: np.ndarray
    """(N, H, W) uint8: number of the component within its frame, from 1; 0 outside all components."""
    table: np.ndarray
    """(M, 5) int32, a row per component: frame, id, label, first column, column after the last one."""


@dataclass(frozen=True)
class FrameSet:
    """The frames of one split, of `data.height` x `data.width` pixels; memory-mapped, read-only."""

    images: np.ndarray
    """(N, H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(N, H, W) uint8, a class or VOID."""
    names: list[str]
    """The N values of `Frame.name`."""
    fingerprint: str
    """SHA-256 of images and labels, hex."""
    pixels: np.ndarray
    """(N, C) int64: pixels of each class in each frame, in the order of the labels."""
    components: Components | None = None
    """Connected components of the labels, where they were asked for."""
    aspect: float | None = None
    """Median of width / height of the pictures before they became frames; None in a cache of an earlier version."""

    def absent(self, classes: LabelSet) -> tuple[SegClass, ...]:
        """Return the foreground classes without a pixel, which no mean over classes takes into account."""
        return tuple(c for c in classes.foreground if not self.pixels[:, c.label].any())

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Pool:
    """Frames from which splits are drawn."""

    location: str
    """Their folder or split, for messages."""
    frames: list[Frame]


def draw(cfg: DataConfig, train: Pool, heldout: Pool | None) -> dict[str, list[Frame]]:
    """Draw disjoint splits of `cfg.train`, `cfg.val` and `cfg.test` frames, by `cfg.seed`.

    Train comes from the pool `train`. Val and test come from `heldout` (the official validation split), or from `train`
    if `heldout` is None or empty. The frames of val do not depend on the sizes of train and test, so that runs with
    more training data are validated on the same frames.

    Raises:
        ConfigError: a pool has too few frames.
    """
    if heldout is None or not heldout.frames:
        return split_pool(cfg, train, "val", "test", "train")
    return split_pool(cfg, heldout, "val", "test") | split_pool(cfg, train, "train")


def split_pool(cfg: DataConfig, pool: Pool, *names: str) -> dict[str, list[Frame]]:
    """Shuffle the pool and cut it into the named splits, in that order; raises ConfigError if it has too few frames."""
    counts = [getattr(cfg, name) for name in names]
    settings = [f"data.{name}" for name in names]
    if sum(counts) > len(pool.frames):
        raise ConfigError(
            f"{' + '.join(settings)}: asks for {sum(counts)} frames, {pool.location} has {len(pool.frames)}; "
            f"lower {' or '.join(settings)}"
        )
    by_name = sorted(pool.frames, key=lambda frame: frame.name)
    shuffled = iter([by_name[i] for i in np.random.default_rng(cfg.seed).permutation(len(by_name))])
    return {name: [next(shuffled) for _ in range(count)] for name, count in zip(names, counts, strict=True)}
