"""What each trial gets of a machine or a cluster, and how many run at once.  Needs no Ray."""

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig
from search.study.config import SearchConfig

PROBE_S = 5.0
"""How long an address may take to answer before it counts as dead."""


@dataclass(frozen=True)
class Resources:
    """What a trial gets, and how many run at once."""

    cpus: float
    gpus: float
    concurrent: int
    threads: int
    """Of each process."""
    processes: int = 1


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, or one of several raylets on a machine."""

    id: str
    address: str
    port: int
    """Where its raylet listens."""
    host: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"node {self.address} ({self.host}, {self.id[:8]})"

    def fitting(self, cpus: float, gpus: float) -> int:
        """How many trials with these resources fit on it at once."""
        fitting = math.floor(self.cpus / cpus + 1e-9)
        return min(fitting, math.floor(self.gpus / gpus + 1e-9)) if gpus > 0 else fitting


def gpu_needed(run: RunConfig) -> str:
    """The setting that needs a GPU, as messages begin; empty where none does."""
    if run.train.precision == "fp16":
        return "train.precision: got fp16"
    return "data.device: got gpu" if run.data.device == "gpu" else ""


def share(search: SearchConfig, cores: float, cards: float, needed: str = "") -> Resources:
    """Divide processor cores and GPUs among trials.

    Args:
        search: what a trial shall get.
        cores: processor cores in all.
        cards: GPUs in all.
        needed: see `gpu_needed`.

    Raises:
        ConfigError: no trial fits, or a setting needs a GPU where a trial has none.
    """
    cpus, gpus = cpus_of_trial(search), gpus_of_trial(search, cards)
    fitting = Node("", "", 0, "", cores, cards).fitting(cpus, gpus)
    check_share(search, gpus, fitting, f"there are {cores:g} cores and {cards:g} GPUs", needed)
    concurrent = min(fitting, search.trials, search.max_concurrent or fitting)
    threads = max(1, int(cores / concurrent / search.processes))
    return Resources(cpus, gpus, concurrent, threads, search.processes)


def share_cluster(search: SearchConfig, nodes: Sequence[Node], needed: str = "") -> Resources:
    """What a trial gets of a cluster, whose nodes may come and go: as many threads as cores, whoever else is there.

    `concurrent` is the most that may ever run at once; how many do is up to the nodes of the moment.

    Raises:
        ConfigError: no trial fits on any node, or a setting needs a GPU where a trial has none.
    """
    cpus, gpus = cpus_of_trial(search), gpus_of_trial(search, sum(node.gpus for node in nodes))
    fitting = sum(node.fitting(cpus, gpus) for node in nodes)
    largest = f"the largest of {len(nodes)} nodes has {max((n.cpus for n in nodes), default=0):g} cores"
    check_share(search, gpus, fitting, f"{largest}, and {max((n.gpus for n in nodes), default=0):g} GPUs", needed)
    concurrent = min(search.trials, search.max_concurrent or search.trials)
    return Resources(cpus, gpus, concurrent, max(1, int(cpus / search.processes)), search.processes)


def cpus_of_trial(search: SearchConfig) -> float:
    """Processor cores of a trial: as asked for, and at least one for each of several processes."""
    return search.cpus_per_trial if search.processes == 1 else max(search.cpus_per_trial, search.processes)


def gpus_of_trial(search: SearchConfig, cards: float) -> float:
    """GPUs of a trial: as asked for, or one for each process where there are any."""
    return search.gpus_per_trial if search.gpus_per_trial is not None else min(1.0, cards) * search.processes


def check_share(search: SearchConfig, gpus: float, fitting: int, found: str, needed: str) -> None:
    """Raise ConfigError if no trial fits, or a trial without a GPU has a setting that needs one."""
    if fitting < 1:
        several = f", --processes-per-trial {search.processes}" if search.processes > 1 else ""
        raise ConfigError(
            f"--cpus-per-trial {cpus_of_trial(search):g}, --gpus-per-trial {gpus:g}{several}: no trial fits, {found}; "
            "lower them"
        )
    if needed and gpus == 0:
        raise ConfigError(f"{needed}, which needs a GPU, and trials have none; use auto")


def check_resources(search: SearchConfig, needed: str) -> None:
    """Find out without starting anything whether a trial fits.

    Raises:
        ConfigError: it does not fit this machine, nothing answers at the address of the cluster, or GPUs and processes
            do not go together.
    """
    check_gpus(search)
    if is_private(search):
        share(search, os.cpu_count() or 1, count_gpus(), needed)
    elif search.ray_address is not None and search.ray_address != "auto":
        probe(search.ray_address)


def check_gpus(search: SearchConfig) -> None:
    """Raise ConfigError unless a trial has no GPU, a part of one for its only process, or one for each process."""
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
    """Whether the run starts a cluster of its own on this machine."""
    return search.ray_address is None or search.ray_address == "local"


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def probe(address: str) -> None:
    """Raise ConfigError unless something listens at `[ray://]host:port`; Ray itself would try for nine minutes."""
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
    """Whether something at host:port takes connections; a frozen process does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError:
        return False
    return True
