"""Devices: which one a name selects, out-of-memory errors, peaks of memory.  See also `fgseg.gpu_memory`."""

import ctypes
import os
import re
import resource
import sys

import torch

from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig

OUT_OF_MEMORY_TEXTS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
"""Texts of out-of-memory errors of CUDA's libraries and the CPU's allocator, which raise no torch.OutOfMemoryError."""


def hide_gpus() -> None:
    """Hide all GPUs from this process and its children; call it before the process uses a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class GpuUnavailableError(RuntimeError):
    """CUDA does not initialise in a process that has a GPU."""


def check_gpu(run: RunConfig) -> None:
    """Raise ConfigError for a setting that needs a GPU, on a machine without one."""
    check_precision(run.train.precision)
    check_frames_device(run.data.device, torch.cuda.is_available())


def check_precision(precision: str) -> None:
    """Raise ConfigError for `train.precision=fp16` on a machine without a GPU."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: got fp16, this machine has no GPU; use auto, bf16 or no")


def check_frames_device(setting: str, on_gpu: bool) -> None:
    """Raise ConfigError for `data.device=gpu` where the model is not on a GPU."""
    if setting == "gpu" and not on_gpu:
        raise ConfigError("data.device: got gpu, this machine has no GPU; use auto or ram")


def check_cuda() -> None:
    """Raise GpuUnavailableError if CUDA does not initialise in this process."""
    if not torch.cuda.is_available():
        raise GpuUnavailableError("this trial has a GPU, but CUDA does not initialise in its process; torch warns why")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


GPU_FAULT_TEXTS = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "CUBLAS_STATUS_", "CUDNN_STATUS_")
"""Texts of errors of CUDA and its libraries that are raised as RuntimeError instead of torch.AcceleratorError."""


def is_gpu_fault(error: BaseException) -> bool:
    """Return whether an error of the GPU, other than out of memory, may make every later call in this process fail.

    After an illegal memory access or a failed assertion on the GPU, CUDA returns the same error from every call until
    the process ends, and so may a failed initialisation.  Which errors are of that kind is not told apart: a new
    process is safe after all of them.
    """
    if is_out_of_memory(error) or "out of memory" in str(error) or not isinstance(error, RuntimeError):
        return False
    if isinstance(error, GpuUnavailableError | torch.AcceleratorError):
        return True
    return any(text in str(error) for text in GPU_FAULT_TEXTS)


def reset_peak(device: torch.device) -> None:
    """Restart the count of a GPU's peak memory; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the peak of the GPU memory that this process reserved since `reset_peak`, in GiB; None on the CPU.

    Reserved memory counts even where no tensor fills it: other processes cannot use it.
    """
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


def find_device(name: str) -> str:
    """Return `cpu`, or torch's name of a GPU of this machine.

    Args:
        name: `cpu`, `cuda`, `cuda:<number>`, or `auto`, which is a GPU if there is one.

    Raises:
        ConfigError: another name, or a GPU that does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"--device: got {name!r}, must be cpu, cuda, cuda:<number> or auto")
    if int(match[1] or 0) >= count:
        raise ConfigError(f"--device: got {name}, this machine has {count} GPUs; use cpu or auto")
    return name


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt(3)."""


def tune_malloc() -> bool:
    """Let this process reuse the memory of freed tensors instead of returning it to the system; glibc only.

    Every step allocates the same large tensors.  By default each gets new pages, which the system clears: on the CPU
    that takes a third of the hybrid loss's time.  Afterwards the process's memory never shrinks.

    Returns:
        Whether the settings were accepted; False with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    accepted = [mallopt(option, value) for option, value in options.items()]
    return all(accepted)


def peak_memory_gib() -> float:
    """Return the peak of this process's resident memory since its start, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # ru_maxrss is in bytes on macOS, in KiB on Linux
