"""How much of a GPU this process may use, where several trials share one, and whether it ran out."""

import ctypes
import os
import re
import resource
import sys

import torch

from fgseg.config.errors import ConfigError

BESIDE_TENSORS = 2**30
"""Bytes of a card that a process takes beside what torch's allocator counts: CUDA's context, code, recorded graphs."""
NO_MEMORY = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory")
"""What CUDA's libraries say where torch's own allocator had no part, and the CPU's allocator."""
RESIDENT_PART = 0.5
"""Largest part of a trial's memory that frames may take; the model and its activations need the rest."""


def limit_gpu_memory(fraction: float) -> None:
    """Let this process use at most a part of the current GPU's memory; without a GPU nothing happens.

    Beyond it an allocation fails in this process alone, instead of in whichever trial on the card comes next.  What
    CUDA itself needs in the process is taken off the share.

    Args:
        fraction: in (0, 1], such as 0.25 where four trials share a card; more than 1 GPU counts as 1.

    Raises:
        ValueError: the fraction is not above 0.
    """
    if fraction <= 0:
        raise ValueError(f"gpu share: got {fraction}, must be above 0; 0.25 lets four trials share a card")
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share_of_tensors(fraction, torch.cuda.mem_get_info()[1]))


def share_of_tensors(fraction: float, total: int) -> float:
    """The part of a card of `total` bytes that tensors may fill, where a process may use `fraction` of it."""
    return 1.0 if fraction >= 1 else max(fraction / 2, fraction - BESIDE_TENSORS / total)


def hide_gpus() -> None:
    """Let this process, which must not have used a GPU yet, and those that it starts see none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def usable_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take: of its share and of what is free on the card, the smaller.

    What the allocator keeps for later goes back to the card first; what then is left is a recorded step's own.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(index)
    share = torch.cuda.get_per_process_memory_fraction(index)
    return available_bytes(free, total, share, torch.cuda.memory_reserved(index))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch's own, or one of the CPU's or of CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def reset_peak(device: torch.device) -> None:
    """Count the peak of a GPU's memory from now on; on the CPU nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Most memory that this process took from a GPU since the count began, in GiB; None on the CPU.

    What the allocator holds counts, not what tensors fill: so much other processes could not have.
    """
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


def available_bytes(free: int, total: int, share: float, reserved: int) -> int:
    """Bytes that a process may still take.

    Args:
        free, total: bytes of the card.
        share: part of the card that the process's tensors may fill, in (0, 1].
        reserved: bytes that its allocator holds.

    Returns:
        At least 0.
    """
    return max(0, min(int(share * total) - reserved, free))


def fits(needed: int, usable: int) -> bool:
    """Whether frames of so many bytes may live on a GPU of which so many are usable."""
    return needed <= RESIDENT_PART * usable


def find_device(name: str) -> str:
    """`cpu`, or a GPU of this machine as torch names it.

    Args:
        name: `cpu`, `cuda`, `cuda:<number>`, or `auto`: a GPU where there is one.

    Raises:
        ConfigError: another name, or a GPU that this machine has not.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    form = re.fullmatch(r"cuda(?::(\d+))?", name)
    if form is None:
        raise ConfigError(f"--device: got {name!r}, must be cpu, cuda, cuda:<number> or auto")
    if int(form[1] or 0) >= count:
        raise ConfigError(f"--device: got {name}, this machine has {count} GPUs; use cpu or auto")
    return name


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt(3)."""


def tune_malloc() -> bool:
    """Let this process reuse freed tensors' memory instead of returning it to the system; glibc only.

    A step allocates the same large tensors as the one before.  By default each comes as fresh pages, which the system
    clears one by one: on the CPU that takes a third of a hybrid loss's time.  The process never shrinks.

    Returns:
        Whether the allocator took the settings; where it did not (another C library), nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    taken = [mallopt(option, value) for option, value in options.items()]
    return all(taken)


def peak_memory_gib() -> float:
    """Most memory that this process has held at a time since it began, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere
