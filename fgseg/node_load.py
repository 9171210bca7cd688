"""The load of a node while it trains, by the names of MLflow's system metrics: processors, memory, and GPUs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import psutil
import torch

SAMPLE_S = 1.0
"""Seconds between two samples; NVML's utilisation and power are themselves means over up to one second."""

GPU_READINGS: dict[str, Callable[[int], float]] = {
    "utilization_percentage": torch.cuda.utilization,
    "memory_usage_megabytes": lambda gpu: torch.cuda.device_memory_used(gpu) / 1e6,
    "power_usage_watts": lambda gpu: torch.cuda.power_draw(gpu) / 1000,
}
"""What a sample reads of each GPU by its index in torch; torch asks NVML (package nvidia-ml-py), which counts the whole
GPU with every process on it, and does not touch this process's CUDA context."""

Sample = dict[str, float]


@contextmanager
def measured_load(gpus: Sequence[int], active: bool = True) -> Iterator[dict[str, float]]:
    """Sample the load of this node in a thread until the context is closed.

    Only one process of a training measures, since the values are those of the node.

    Args:
        gpus: indices in torch of the training's GPUs; the first one is called gpu_0.
        active: whether this process measures.

    Yields:
        A dictionary that is filled when the context is closed, with one decimal: `cpu_utilization_percentage` of all
        cores together, `system_memory_usage_megabytes`, and `gpu_<i>_` with each name of GPU_READINGS that the GPU
        supports.  It stays empty where `active` is false.
    """
    means: dict[str, float] = {}
    if not active:
        yield means
        return
    samples: list[Sample] = []
    closed = threading.Event()
    psutil.cpu_percent()  # the next call returns the mean since this one
    threading.Thread(target=take_samples, args=(gpus, samples, closed), name="load", daemon=True).start()
    try:
        yield means
    finally:
        closed.set()  # without waiting for the thread, which ends after at most one sample
    cpu = {"cpu_utilization_percentage": psutil.cpu_percent()}
    means |= mean_of([*samples] or [take_sample(gpus)]) | cpu


def take_samples(gpus: Sequence[int], samples: list[Sample], closed: threading.Event) -> None:
    """Append a sample every SAMPLE_S seconds until the event is set."""
    while not closed.wait(SAMPLE_S):
        samples.append(take_sample(gpus))


def take_sample(gpus: Sequence[int]) -> Sample:
    """Read the memory of this node, and what its GPUs support of GPU_READINGS."""
    sample = {"system_memory_usage_megabytes": psutil.virtual_memory().used / 1e6}
    for number, gpu in enumerate(gpus):
        for name, read in GPU_READINGS.items():
            try:
                sample[f"gpu_{number}_{name}"] = read(gpu)
            except Exception:  # of NVML, for what a GPU does not support; of torch, where NVML is missing
                continue
    return sample


def mean_of(samples: Sequence[Sample]) -> Sample:
    """Return the mean of each reading over the samples that have it, with one decimal."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: round(fmean(sample[name] for sample in samples if name in sample), 1) for name in names}


def gpus_of(device: torch.device, processes: int) -> Sequence[int]:
    """Return the indices in torch of the GPUs of this node that a training uses.

    Args:
        device: of this process.
        processes: that train together; several use every GPU that this process can see.
    """
    if device.type != "cuda":
        return ()
    return range(torch.cuda.device_count()) if processes > 1 else (torch.cuda.current_device(),)
