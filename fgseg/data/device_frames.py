"""Frames of a split during training: memory-mapped on the host (`HostFrames`) or copied to the GPU (`DeviceFrames`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fgseg.config.errors import ConfigError
from fgseg.data import FrameSet
from fgseg.devices import check_frames_device
from fgseg.gpu_memory import gpu_memory

COPIED_AT_ONCE = 64
"""Frames that are copied to a GPU at a time: of full-size Cityscapes they take 0.4 GB of the host's memory."""


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
            process may still use (see `fgseg.gpu_memory`), else ram.
        device: the device of the model.

    Returns:
        Frames by the name of their split.

    Raises:
        ConfigError: `gpu` without a GPU, or with too little memory for the frames.
    """
    check_frames_device(setting, on_gpu=device.type != "cpu")
    if setting == "ram" or device.type == "cpu":
        return {name: HostFrames(frames, device) for name, frames in splits.items()}
    memory = gpu_memory(device)
    keys = {name: (frames.fingerprint, frames.components is not None) for name, frames in splits.items()}
    sources = {keys[name]: frames for name, frames in splits.items()}
    sizes = {key: sum(array.nbytes for array in arrays_of(frames)) for key, frames in sources.items()}
    available = memory.keep_frames(sizes, lambda key: copy_to(device, sources[key]))
    if available is None:
        return {name: memory.frames[key] for name, key in keys.items()}
    if setting == "gpu":
        needed = sum(size for key, size in sizes.items() if key not in memory.frames)
        raise ConfigError(
            f"data.device: got gpu, the frames take {needed / 2**30:.1f} GiB and this trial may use "
            f"{available / 2**30:.1f} GiB, half of it for frames; use auto or ram, or a larger --gpus-per-trial"
        )
    return {name: HostFrames(frames, device) for name, frames in splits.items()}


def copy_to(device: torch.device, frames: FrameSet) -> DeviceFrames:
    """Copy the frames of a split into the memory of a device, `COPIED_AT_ONCE` at a time through one buffer.

    For a GPU the buffer is pinned: the copy needs no other memory of the host, and torch keeps the buffer for the next.
    """
    arrays = arrays_of(frames)
    frame_bytes = max(array[:1].nbytes for array in arrays)
    buffer = torch.empty(COPIED_AT_ONCE * frame_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    images, labels, *ids = (copy_through(buffer, array, device) for array in arrays)
    if frames.components is None:
        return DeviceFrames(images, labels, frames.pixels)
    return DeviceFrames(images, labels, frames.pixels, frames.components.table, *ids)


def copy_through(buffer: Tensor, array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array (N, ...) uint8, usually memory-mapped, to a device.

    Args:
        buffer: (B,) uint8 on the CPU, with room for `COPIED_AT_ONCE` frames.
        array: the frames; any number of them.
        device: of the result.
    """
    result = torch.empty(array.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(array), COPIED_AT_ONCE):
        part = array[start : start + COPIED_AT_ONCE]
        staged = buffer[: part.nbytes].view(part.shape)
        np.copyto(staged.numpy(), part)
        result[start : start + len(part)].copy_(staged)  # waits for the GPU, which then no longer reads the buffer
    return result


def arrays_of(frames: FrameSet) -> list[np.ndarray]:
    """Return the arrays of a split that a GPU holds: images, labels and, if loaded, component ids."""
    return [frames.images, frames.labels, *([] if frames.components is None else [frames.components.ids])]
