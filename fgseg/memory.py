"""The C library's memory allocator, told to keep what a training step frees for the next one."""

import ctypes
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
