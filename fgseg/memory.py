"""The process's memory: how much it held, and the C library's allocator, told to keep what a step frees."""

import ctypes
import resource
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
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
