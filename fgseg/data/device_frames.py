"""Where the frames of a split are while a model trains: memory-mapped on the host, or copied to the GPU once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fgseg.config.errors import ConfigError
from fgseg.data import FrameSet
from fgseg.devices import fits, usable_bytes


class Frames(Protocol):
    """The frames of a split, to be taken by index."""

    @property
    def device(self) -> torch.device:
        """Receives what is taken."""

    @property
    def index_device(self) -> torch.device:
        """Where indices are wanted, so that taking frames waits for nothing."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The frames at `index` (B,) int64 as images (B, 3, H, W) uint8 and labels (B, H, W) uint8."""


@dataclass(frozen=True)
class HostFrames:
    """Frames in the page cache of the host; each batch is copied to the device."""

    frames: FrameSet
    device: torch.device

    @property
    def index_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.labels.shape[1], self.frames.labels.shape[2]

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `Frames.take`; the index is on the CPU."""
        arrays = (self.frames.images, self.frames.labels)
        images, labels = (self.send(torch.from_numpy(np.asarray(array[index.numpy()]))) for array in arrays)
        return images.permute(0, 3, 1, 2), labels

    def send(self, batch: Tensor) -> Tensor:
        """Copy a batch to the device; only pinned memory lets the copy run beside the computation."""
        return batch if self.device.type == "cpu" else batch.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True)
class DeviceFrames:
    """Frames on the device itself: images (N, H, W, 3) and labels (N, H, W), both uint8."""

    images: Tensor
    labels: Tensor

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def index_device(self) -> torch.device:
        return self.images.device

    @property
    def size(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `Frames.take`; the index is on the device."""
        return self.images.index_select(0, index).permute(0, 3, 1, 2), self.labels.index_select(0, index)


def load_to_device(splits: Mapping[str, FrameSet], setting: str, device: torch.device) -> dict[str, Frames]:
    """Put the splits where they serve training best.

    Args:
        splits: by name.
        setting: `data.device`: gpu, ram, or auto, which takes the GPU where all splits together fit into half of the
            memory that this process may still use there (see `fgseg.devices.take_share`).
        device: that of the model.

    Returns:
        The splits under their names.

    Raises:
        ConfigError: gpu without a GPU, or without room for the frames.
    """
    if setting == "gpu" and device.type == "cpu":
        raise ConfigError("data.device: got gpu, this machine has no GPU; use auto or ram")
    if setting == "ram" or device.type == "cpu":
        return {name: HostFrames(frames, device) for name, frames in splits.items()}
    keys = {name: (frames.fingerprint, device) for name, frames in splits.items()}
    for stale in _kept.keys() - set(keys.values()):
        del _kept[stale]
    missing = {name: frames for name, frames in splits.items() if keys[name] not in _kept}
    needed = sum(frames.images.nbytes + frames.labels.nbytes for frames in missing.values())
    if missing and not fits(needed, usable := usable_bytes(device)):
        if setting == "gpu":
            raise ConfigError(
                f"data.device: got gpu, the frames take {needed / 2**30:.1f} GiB and this trial may use "
                f"{usable / 2**30:.1f} GiB, half of it for frames; use auto or ram, or a larger --gpus-per-trial"
            )
        return {name: HostFrames(frames, device) for name, frames in splits.items()}
    for name, frames in missing.items():
        _kept[keys[name]] = copy_to(device, frames)
    return {name: _kept[key] for name, key in keys.items()}


_kept: dict[tuple[str, torch.device], DeviceFrames] = {}
"""The frames of this process's last trial, by content: the next one trains on the same, and nobody writes to them."""


def copy_to(device: torch.device, frames: FrameSet) -> DeviceFrames:
    """Copy a split to a device."""
    images, labels = (torch.from_numpy(np.array(array)).to(device) for array in (frames.images, frames.labels))
    return DeviceFrames(images, labels)
