"""The memory of a GPU that this process may use: its share, the frames that stay, what is free, evaluation batches."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

NON_TENSOR_BYTES = 2**30
"""GPU memory in bytes that torch's allocator does not count: CUDA's context, code and captured graphs."""
MAX_FRAMES_FRACTION = 0.5
"""Largest fraction of the available memory that frames may take; beyond it they stay on the host."""
EVALUATION_PX = 2**23
"""Pixels of an evaluation batch if there is room: this size keeps a GPU busy."""
EVALUATION_BYTES_PER_PX = 2**10
"""GPU memory per pixel of an evaluation batch, at most, for the larger variants; limits the batch."""
DEFAULT_POOL = (0, 0)
"""The allocator's pool outside captured graphs, as torch.cuda.memory_snapshot names it."""

FramesKey = tuple[str, bool]
"""Fingerprint of a set of frames, and whether their components are loaded."""


class GpuMemory:
    """The memory of one GPU as this process uses it; one object for each GPU and process, see `gpu_memory`.

    No method frees memory but `keep_frames`, which drops the frames of earlier calls.  Not thread-safe.
    """

    def __init__(self, index: int):
        """Use the GPU of this index, at least 0."""
        self.index = index
        self.frames: dict[FramesKey, Any] = {}

    def limit_share(self, fraction: float) -> None:
        """Limit this process to a fraction of the GPU.

        Beyond the limit an allocation fails in this process, instead of in another trial on the same GPU.  The memory
        that CUDA itself needs in the process is subtracted.

        Args:
            fraction: above 0, such as 0.25 where four trials share a GPU; more than 1 counts as 1.
        """
        total = torch.cuda.mem_get_info(self.index)[1]
        torch.cuda.set_per_process_memory_fraction(share_of_tensors(fraction, total), self.index)

    def available_bytes(self) -> int:
        """Return the bytes that this process may still fill, limited by its share and by the GPU's free memory."""
        free, total = torch.cuda.mem_get_info(self.index)
        share = torch.cuda.get_per_process_memory_fraction(self.index)
        segments = [s for s in torch.cuda.memory_snapshot() if s["device"] == self.index]
        return available_bytes(free, total, share, torch.cuda.memory_reserved(self.index), reusable_bytes(segments))

    def evaluation_px(self) -> int:
        """Return the number of pixels of an evaluation batch: `EVALUATION_PX`, or fewer where memory is scarce."""
        return min(EVALUATION_PX, self.available_bytes() // EVALUATION_BYTES_PER_PX)

    def keep_frames(self, wanted: Mapping[FramesKey, int], load: Callable[[FramesKey], Any]) -> int | None:
        """Hold exactly the wanted frames on the GPU; those of the last call are reused, and the others are dropped.

        Args:
            wanted: the bytes of each set of frames by its key.
            load: copies the frames of a key to the GPU.

        Returns:
            None if `frames` has all of them.  Where the missing ones would take more than `MAX_FRAMES_FRACTION` of the
            available memory, nothing is loaded, and the result is that memory in bytes.
        """
        for stale in self.frames.keys() - wanted.keys():
            del self.frames[stale]
        missing = [key for key in wanted if key not in self.frames]
        needed = sum(wanted[key] for key in missing)
        if missing and needed > MAX_FRAMES_FRACTION * (available := self.available_bytes()):
            return available
        self.frames |= {key: load(key) for key in missing}
        return None


def gpu_memory(device: torch.device) -> GpuMemory:
    """Return the object that owns the memory of a GPU in this process.

    Args:
        device: a GPU; without an index the current one.
    """
    return _of_index(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _of_index(index: int) -> GpuMemory:
    return GpuMemory(index)


def limit_gpu_memory(fraction: float) -> None:
    """Limit this process to a fraction of the current GPU's memory (see `GpuMemory`); does nothing without a GPU.

    Raises:
        ValueError: the fraction is not above 0.
    """
    if fraction <= 0:
        raise ValueError(f"gpu share: got {fraction}, must be above 0; 0.25 lets four trials share a GPU")
    if torch.cuda.is_available():
        gpu_memory(torch.device("cuda")).limit_share(fraction)


def share_of_tensors(fraction: float, total: int) -> float:
    """Return the fraction of a GPU of `total` bytes for tensors of a process that may use `fraction` of the GPU."""
    return 1.0 if fraction >= 1 else max(fraction / 2, fraction - NON_TENSOR_BYTES / total)


def available_bytes(free: int, total: int, share: float, reserved: int, reusable: int) -> int:
    """Return the bytes that a process may still fill on a GPU.

    Args:
        free, total: bytes of the GPU.
        share: fraction of the GPU that the process's tensors may fill, in (0, 1].
        reserved: bytes that the process's allocator has reserved.
        reusable: those of them that it can use again, see `reusable_bytes`.

    Returns:
        At least 0.
    """
    return max(0, reusable + min(int(share * total) - reserved, free))


def reusable_bytes(segments: list[dict[str, Any]]) -> int:
    """Return the reserved bytes that the allocator can use again: its segments without any tensor.

    Segments in the pool of a captured graph are left out, since the graph writes to them.

    Args:
        segments: as torch.cuda.memory_snapshot returns them.
    """
    empty = [s for s in segments if s["active_size"] == 0 and tuple(s["segment_pool_id"]) == DEFAULT_POOL]
    return sum(s["total_size"] for s in empty)
