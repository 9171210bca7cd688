"""What each trial gets of a machine or a cluster, and how many run at once.  Needs no Ray."""

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgseg.config import ConfigError
from search.config import SearchConfig

PROBE_S = 5.0
"""How long an address may take to answer before it counts as dead."""


@dataclass(frozen=True)
class Resources:
    """What a trial gets, and how many run at once."""

    cpus: float
    gpus: float
    concurrent: int
    threads: int


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

    def answers(self) -> bool:
        """Whether its raylet still takes connections; a frozen one does."""
        try:
            socket.create_connection((self.address, self.port), PROBE_S).close()
        except OSError:
            return False
        return True

    def fitting(self, cpus: float, gpus: float) -> int:
        """How many trials with these resources fit on it at once."""
        fitting = math.floor(self.cpus / cpus + 1e-9)
        return min(fitting, math.floor(self.gpus / gpus + 1e-9)) if gpus > 0 else fitting


def share(search: SearchConfig, cores: float, cards: float, precision: str) -> Resources:
    """Divide processor cores and GPUs among trials.

    Args:
        search: what a trial shall get.
        cores: processor cores in all.
        cards: GPUs in all.
        precision: the setting `train.precision`.

    Raises:
        ConfigError: no trial fits, or fp16 is asked for where a trial has no GPU.
    """
    gpus = gpus_of_trial(search, cards)
    fitting = Node("", "", 0, "", cores, cards).fitting(search.cpus_per_trial, gpus)
    check_share(search, gpus, fitting, f"there are {cores:g} cores and {cards:g} GPUs", precision)
    concurrent = min(fitting, search.trials, search.max_concurrent or fitting)
    return Resources(search.cpus_per_trial, gpus, concurrent, max(1, int(cores / concurrent)))


def share_cluster(search: SearchConfig, nodes: Sequence[Node], precision: str) -> Resources:
    """What a trial gets of a cluster, whose nodes may come and go: as many threads as cores, whoever else is there.

    `concurrent` is the most that may ever run at once; how many do is up to the nodes of the moment.

    Raises:
        ConfigError: no trial fits on any node, or fp16 is asked for where a trial has no GPU.
    """
    gpus = gpus_of_trial(search, sum(node.gpus for node in nodes))
    fitting = sum(node.fitting(search.cpus_per_trial, gpus) for node in nodes)
    largest = f"the largest of {len(nodes)} nodes has {max((n.cpus for n in nodes), default=0):g} cores"
    check_share(search, gpus, fitting, f"{largest}, and {max((n.gpus for n in nodes), default=0):g} GPUs", precision)
    concurrent = min(search.trials, search.max_concurrent or search.trials)
    return Resources(search.cpus_per_trial, gpus, concurrent, max(1, int(search.cpus_per_trial)))


def gpus_of_trial(search: SearchConfig, cards: float) -> float:
    """GPUs of a trial: as asked for, or one where there are any."""
    return search.gpus_per_trial if search.gpus_per_trial is not None else min(1.0, cards)


def check_share(search: SearchConfig, gpus: float, fitting: int, found: str, precision: str) -> None:
    """Raise ConfigError if no trial fits, or a trial without a GPU is to compute in fp16."""
    if fitting < 1:
        raise ConfigError(
            f"--cpus-per-trial {search.cpus_per_trial:g}, --gpus-per-trial {gpus:g}: no trial fits, {found}; lower them"
        )
    if precision == "fp16" and gpus == 0:
        raise ConfigError("train.precision: got fp16, which needs a GPU, and trials have none; use auto, bf16 or no")


def check_resources(search: SearchConfig, precision: str) -> None:
    """Find out without starting anything whether a trial fits.

    Raises:
        ConfigError: it does not fit this machine, or nothing answers at the address of the cluster.
    """
    if is_private(search):
        share(search, os.cpu_count() or 1, count_gpus(), precision)
    elif search.ray_address is not None and search.ray_address != "auto":
        probe(search.ray_address)


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
