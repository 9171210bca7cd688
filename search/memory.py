"""What to do, and to say, when a trial's memory runs out."""

from typing import Any

import torch

from fgseg.config.settings import RunConfig


def halve(run: RunConfig, processes: int = 1) -> dict[str, Any] | None:
    """Settings with half the micro-batch and twice the accumulation, or None where half is no batch for all processes.

    A batch of an odd number of frames loses one of them.
    """
    if run.train.batch_size < 2 or run.train.batch_size // 2 % processes:
        return None
    return {"train.batch_size": run.train.batch_size // 2, "train.accumulation": run.train.accumulation * 2}


def explain_oom(run: RunConfig, error: BaseException, processes: int = 1) -> str:
    """Name the memory that was not enough, and the settings that would fit, in one line."""
    smaller = halve(run, processes)
    where = memory() if processes == 1 else f"in one of {processes} processes"
    sets = " ".join(f"--set {key}={value}" for key, value in (smaller or {}).items())
    batch = f"{sets} (the same optimizer steps), or --on-oom halve, or " if smaller else ""
    size = f"smaller frames than data.height={run.data.height} and data.width={run.data.width}"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"out of memory ({where}; {first}); {batch}{size} would fit"


def memory() -> str:
    """The memory of this process's device, and how much of it the process holds."""
    if not torch.cuda.is_available():
        return "on the CPU"
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
    held = torch.cuda.max_memory_reserved() / 2**30
    return f"{torch.cuda.get_device_name()}: {total:.1f} GiB, {free:.1f} free, {held:.1f} held by this trial"
