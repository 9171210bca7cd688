"""Divide the CPU cores and GPUs of a machine or a cluster among trials.  Does not import Ray."""

import math
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig
from search.study.config import SearchConfig

MPS_PROGRAM = "nvidia-cuda-mps-control"
"""Control program of NVIDIA MPS, which lets kernels of several processes run on a GPU at the same time."""
MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""Variable by which CUDA finds the daemon of MPS."""
PROBE_S = 5.0
"""Seconds that an address may take to accept a connection before it counts as unreachable."""


@dataclass(frozen=True)
class Resources:
    """Resources of each trial, and the number of trials at once."""

    cpus: float
    """CPU cores of one trial."""
    gpus: float
    """GPUs of one trial; 0.25 is a quarter of one GPU."""
    concurrent: int
    """Largest number of trials at once."""
    threads: int
    """CPU threads of each process."""
    processes: int = 1
    """Processes of one trial."""


@dataclass(frozen=True)
class Node:
    """One node of a Ray cluster; a machine may run several."""

    id: str
    address: str
    port: int
    """Port of the node's raylet."""
    host: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"node {self.address} ({self.host}, {self.id[:8]})"

    def fitting(self, cpus: float, gpus: float) -> int:
        """Return how many trials with these CPU cores and GPUs fit on the node at once."""
        by_cpus = math.floor(self.cpus / cpus + 1e-9)
        return min(by_cpus, math.floor(self.gpus / gpus + 1e-9)) if gpus > 0 else by_cpus


def gpu_needed(run: RunConfig) -> str:
    """Return the first setting that needs a GPU, as the beginning of a message; empty if there is none."""
    if run.train.precision == "fp16":
        return "train.precision: got fp16"
    return "data.device: got gpu" if run.data.device == "gpu" else ""


def share(search: SearchConfig, cores: float, gpu_count: float, needed: str = "") -> Resources:
    """Divide the CPU cores and GPUs of this machine among trials.

    Args:
        search: requested resources of a trial.
        cores: CPU cores of the machine.
        gpu_count: GPUs of the machine.
        needed: see `gpu_needed`.

    Raises:
        ConfigError: no trial fits, or a setting needs a GPU and trials have none.
    """
    cpus, gpus = cpus_of_trial(search), gpus_of_trial(search, gpu_count)
    fitting = Node("", "", 0, "", cores, gpu_count).fitting(cpus, gpus)
    check_share(search, gpus, fitting, f"there are {cores:g} cores and {gpu_count:g} GPUs", needed)
    concurrent = min(fitting, search.trials, search.max_concurrent or fitting)
    threads = max(1, int(cores / concurrent / search.processes))
    return Resources(cpus, gpus, concurrent, threads, search.processes)


def share_cluster(search: SearchConfig, nodes: Sequence[Node], needed: str = "") -> Resources:
    """Return the resources of a trial on a cluster, whose nodes may join and leave during a run.

    The threads of a trial equal its CPU cores.  `concurrent` is limited by the settings only, not by the present nodes.

    Raises:
        ConfigError: no trial fits on any node, or a setting needs a GPU and trials have none.
    """
    cpus, gpus = cpus_of_trial(search), gpus_of_trial(search, sum(node.gpus for node in nodes))
    fitting = sum(node.fitting(cpus, gpus) for node in nodes)
    largest = f"the largest of {len(nodes)} nodes has {max((n.cpus for n in nodes), default=0):g} cores"
    check_share(search, gpus, fitting, f"{largest}, and {max((n.gpus for n in nodes), default=0):g} GPUs", needed)
    concurrent = min(search.trials, search.max_concurrent or search.trials)
    return Resources(cpus, gpus, concurrent, max(1, int(cpus / search.processes)), search.processes)


def cpus_of_trial(search: SearchConfig) -> float:
    """Return the CPU cores of a trial: the setting, but at least one per process if there are several."""
    return search.cpus_per_trial if search.processes == 1 else max(search.cpus_per_trial, search.processes)


def gpus_of_trial(search: SearchConfig, gpu_count: float) -> float:
    """Return the GPUs of a trial: the setting, by default one per process if there are GPUs."""
    return search.gpus_per_trial if search.gpus_per_trial is not None else min(1.0, gpu_count) * search.processes


def check_share(search: SearchConfig, gpus: float, fitting: int, available: str, needed: str) -> None:
    """Raise ConfigError if no trial fits, or if a setting or --max-gpu-hours needs a GPU and trials have none.

    Args:
        search: requested resources of a trial.
        gpus: GPUs of a trial.
        fitting: number of trials that fit at once.
        available: text about the existing resources, for the message.
        needed: see `gpu_needed`.
    """
    if fitting < 1:
        several = f", --processes-per-trial {search.processes}" if search.processes > 1 else ""
        raise ConfigError(
            f"--cpus-per-trial {cpus_of_trial(search):g}, --gpus-per-trial {gpus:g}{several}: no trial fits, "
            f"{available}; lower them"
        )
    if search.max_gpu_hours is not None and gpus == 0:
        raise ConfigError(f"--max-gpu-hours: got {search.max_gpu_hours:g}, and trials have no GPU; give --max-hours")
    if needed and gpus == 0:
        raise ConfigError(f"{needed}, which needs a GPU, and trials have none; use auto")


def check_resources(search: SearchConfig, needed: str) -> None:
    """Check that a trial fits on this machine, or that the cluster accepts connections, without starting Ray.

    Raises:
        ConfigError: a trial does not fit, the cluster is unreachable, or GPUs and processes do not match.
    """
    check_gpus(search)
    if is_private(search):
        share(search, os.cpu_count() or 1, count_gpus(), needed)
    elif search.ray_address is not None and search.ray_address != "auto":
        probe(search.ray_address)


def check_gpus(search: SearchConfig) -> None:
    """Raise ConfigError unless a trial has no GPU, part of one GPU for its only process, or one GPU per process."""
    gpus = search.gpus_per_trial or 0
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"--gpus-per-trial: got {gpus:g}, must be at most 1 or a whole number: each of several processes takes one"
        )
    if gpus > 0 and max(gpus, search.processes) > 1 and gpus != search.processes:
        raise ConfigError(
            f"--processes-per-trial {search.processes}, --gpus-per-trial {gpus:g}: each of several processes takes one "
            "GPU; give the same number of both, or --gpus-per-trial 0"
        )


def is_private(search: SearchConfig) -> bool:
    """Return whether the run starts its own Ray cluster on this machine."""
    return search.ray_address is None or search.ray_address == "local"


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that a process on this machine may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def starts_mps(search: SearchConfig) -> bool:
    """Return whether a run starts NVIDIA MPS: trials of its private Ray node share a GPU, and MPS is installed.

    A daemon that the user has started is used instead, if `MPS_PIPES` names it.
    """
    mine = search.mps == "auto" and is_private(search) and not os.environ.get(MPS_PIPES)
    return mine and shares_gpu(search) and shutil.which(MPS_PROGRAM) is not None


def shares_gpu(search: SearchConfig) -> bool:
    """Return whether several trials share a GPU."""
    return 0 < (search.gpus_per_trial or 0) < 1


def describe_mps(search: SearchConfig) -> str:
    """Describe how trials that share a GPU use NVIDIA MPS; empty where none share one."""
    if not shares_gpu(search):
        return ""
    if not is_private(search):
        return "NVIDIA MPS where the nodes of the cluster were started with it"
    if os.environ.get(MPS_PIPES):
        return f"NVIDIA MPS of {MPS_PIPES}={os.environ[MPS_PIPES]}"
    if starts_mps(search):
        return f"NVIDIA MPS, started for this run by {MPS_PROGRAM}"
    if search.mps == "off":
        return "without NVIDIA MPS by --mps off, so trials take turns"
    return f"without NVIDIA MPS: {MPS_PROGRAM} is not installed, so trials take turns"


def probe(address: str) -> None:
    """Raise ConfigError unless `[ray://]host:port` accepts connections; Ray (2.60) would retry for nine minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"--ray-address: got {address!r}, must be host:port, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--ray-address: nothing answers at {address} ({reason}); start the cluster, or leave the option out"
        ) from None


def answers(address: str) -> bool:
    """Return whether host:port accepts connections within PROBE_S; true also for a suspended process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError:
        return False
    return True
