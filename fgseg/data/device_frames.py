"""Frames of a split during training: memory-mapped on the host (`HostFrames`) or copied to the GPU (`DeviceFrames`)."""

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
    """The frames of a split, accessed by index."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""

    @property
    def index_device(self) -> torch.device:
        """Device on which `batch` expects its index, so that it does not synchronise with the GPU."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each label in each frame, see `FrameSet.pixels`."""

    @property
    def components(self) -> np.ndarray | None:
        """The table of the frames' connected components, see `Components.table`; None if they were not loaded."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames at `index`.

        Args:
            index: (B,) int64 on `index_device`, each in [0, len(self)).

        Returns:
            images (B, 3, H, W) uint8 in [0, 255] and labels (B, H, W) uint8, a class or VOID, on `device`.
        """

    def component_ids(self, index: Tensor) -> Tensor:
        """Return the component of each pixel of the frames at `index`, (B, H, W) uint8, see `Components.ids`."""


@dataclass(frozen=True)
class HostFrames:
    """Memory-mapped frames in the page cache of the host; each batch is copied to the device."""

    frames: FrameSet
    device: torch.device

    @property
    def index_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.labels.shape[1], self.frames.labels.shape[2]

    @property
    def pixels(self) -> np.ndarray:
        return self.frames.pixels

    @property
    def components(self) -> np.ndarray | None:
        return None if self.frames.components is None else self.frames.components.table

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Copy frames to the device (see `Frames.batch`); the index is on the CPU."""
        images, labels = (self._to_device(array, index) for array in (self.frames.images, self.frames.labels))
        return images.permute(0, 3, 1, 2), labels

    def component_ids(self, index: Tensor) -> Tensor:
        """Copy component ids to the device (see `Frames.component_ids`); the index is on the CPU."""
        assert self.frames.components is not None
        return self._to_device(self.frames.components.ids, index)

    def _to_device(self, array: np.ndarray, index: Tensor) -> Tensor:
        """Copy frames of an array (N, ...) to the device, from pinned memory so that the copy is asynchronous."""
        batch = torch.from_numpy(np.asarray(array[index.numpy()]))
        return batch if self.device.type == "cpu" else batch.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True)
class DeviceFrames:
    """Frames in the memory of the device: images (N, H, W, 3) uint8 and labels (N, H, W) uint8, a class or VOID.

    `pixels` and `components` are on the host; `ids` are the component ids (N, H, W) uint8 on the device, if loaded.
    """

    images: Tensor
    labels: Tensor
    pixels: np.ndarray
    components: np.ndarray | None = None
    ids: Tensor | None = None

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
        """Select frames on the device (see `Frames.batch`); the index is on the device."""
        return self.images.index_select(0, index).permute(0, 3, 1, 2), self.labels.index_select(0, index)

    def component_ids(self, index: Tensor) -> Tensor:
        """Select component ids on the device (see `Frames.component_ids`); the index is on the device."""
        assert self.ids is not None
        return self.ids.index_select(0, index)


def load_to_device(splits: Mapping[str, FrameSet], setting: str, device: torch.device) -> dict[str, Frames]:
    """Copy the splits to the GPU, or keep them on the host, by the setting `data.device`.

    Copies are kept for the next call in the same process, which reuses those with the same fingerprint and frees the
    others.  Call it from one thread.

    Args:
        splits: by name.
        setting: gpu, ram or auto; auto means gpu if all splits together fit into half of the GPU memory that this
            process may still use (see `fgseg.devices.limit_gpu_memory`), else ram.
        device: the device of the model.

    Returns:
        Frames by the name of their split.

    Raises:
        ConfigError: `gpu` without a GPU, or with too little memory for the frames.
    """
    if setting == "gpu" and device.type == "cpu":
        raise ConfigError("data.device: got gpu, this machine has no GPU; use auto or ram")
    if setting == "ram" or device.type == "cpu":
        return {name: HostFrames(frames, device) for name, frames in splits.items()}
    keys = {name: (frames.fingerprint, frames.components is not None, device) for name, frames in splits.items()}
    for stale in _device_frames.keys() - set(keys.values()):
        del _device_frames[stale]
    missing = {name: frames for name, frames in splits.items() if keys[name] not in _device_frames}
    needed = sum(array.nbytes for frames in missing.values() for array in arrays_of(frames))
    if missing and not fits(needed, usable := usable_bytes(device)):
        if setting == "gpu":
            raise ConfigError(
                f"data.device: got gpu, the frames take {needed / 2**30:.1f} GiB and this trial may use "
                f"{usable / 2**30:.1f} GiB, half of it for frames; use auto or ram, or a larger --gpus-per-trial"
            )
        return {name: HostFrames(frames, device) for name, frames in splits.items()}
    for name, frames in missing.items():
        _device_frames[keys[name]] = copy_to(device, frames)
    return {name: _device_frames[key] for name, key in keys.items()}


_device_frames: dict[tuple[str, bool, torch.device], DeviceFrames] = {}
"""Frames of the last call of `load_to_device`, by fingerprint, whether they have components, and device; the next trial
mostly uses the same ones."""


def copy_to(device: torch.device, frames: FrameSet) -> DeviceFrames:
    """Copy the frames of a split into the memory of a device."""
    images, labels, *ids = (torch.from_numpy(np.array(array)).to(device) for array in arrays_of(frames))
    if frames.components is None:
        return DeviceFrames(images, labels, frames.pixels)
    return DeviceFrames(images, labels, frames.pixels, frames.components.table, *ids)


def arrays_of(frames: FrameSet) -> list[np.ndarray]:
    """Return the arrays of a split that a GPU holds: images, labels and, if loaded, component ids."""
    return [frames.images, frames.labels, *([] if frames.components is None else [frames.components.ids])]
