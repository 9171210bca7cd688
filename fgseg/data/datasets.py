"""The contract that every reader of a data set keeps, and the drawing of splits from its frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig

Progress = Callable[[str, int, int], None]
"""Called with a split's name, the frames done and the frames in all."""


@dataclass(frozen=True)
class Frame:
    """One frame of a data set, not decoded."""

    name: str
    """Unique in its data set; splits are drawn from the frames sorted by it."""
    image: str
    """Where the image is, for people: a file, a row of a table."""
    label: str
    """Where the label is, for people."""
    identity: tuple[int | str, ...]
    """With the name and the data set's root, decides the content: sizes and times of files, for example."""


class Reader(Protocol):
    """A data set, made from the section `data` of the settings."""

    table: Mapping[int, int]
    """The data set's ids, each with its label (0-6 or VOID)."""
    advice: str
    """What people can do about an id that is not in the table."""
    remote: bool
    """Whether listing the frames needs the network."""

    def splits(self) -> dict[str, list[Frame]]:
        """The frames of train, val and test, none decoded; raises ConfigError, see `fgseg.data.check`."""

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode one frame; called by several threads at once.

        Returns:
            The image, (H, W, 3) uint8 RGB, and its ids, (H, W) integers; their sizes may differ, the caller checks.

        Raises:
            ConfigError: a file cannot be decoded, or is not an image or a label.
        """


@dataclass(frozen=True)
class FrameSet:
    """The frames of one split at the size of the settings, memory-mapped and read-only."""

    images: np.ndarray
    """(N, H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(N, H, W) uint8: 0-6, or VOID."""
    names: list[str]
    """The N names that the frames have in their data set."""
    fingerprint: str
    """SHA-256 of images and labels, hex."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Pool:
    """Frames to draw from, and where they are, for messages."""

    place: str
    frames: list[Frame]


def draw(cfg: DataConfig, train: Pool, heldout: Pool | None) -> dict[str, list[Frame]]:
    """Draw disjoint splits of the sizes in the settings.

    Train comes from `train`; val and test both come from `heldout` (the official validation folder), or from `train` as
    well where that is None or empty.  Val does not depend on the number of test or train frames, so that more training
    data leave the measure as it was.

    Raises:
        ConfigError: a pool has too few frames.
    """
    if heldout is None or not heldout.frames:
        return take(cfg, train, "val", "test", "train")
    return take(cfg, heldout, "val", "test") | take(cfg, train, "train")


def take(cfg: DataConfig, pool: Pool, *names: str) -> dict[str, list[Frame]]:
    """Deal the shuffled pool out to the named splits, one after the other; raises ConfigError where it is too small."""
    counts = [getattr(cfg, name) for name in names]
    settings = [f"data.{name}" for name in names]
    if sum(counts) > len(pool.frames):
        raise ConfigError(
            f"{' + '.join(settings)}: asks for {sum(counts)} frames, {pool.place} has {len(pool.frames)}; "
            f"lower {' or '.join(settings)}"
        )
    by_name = sorted(pool.frames, key=lambda frame: frame.name)
    shuffled = iter([by_name[i] for i in np.random.default_rng(cfg.seed).permutation(len(by_name))])
    return {name: [next(shuffled) for _ in range(count)] for name, count in zip(names, counts, strict=True)}
