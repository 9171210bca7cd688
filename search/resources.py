"""What each trial gets of a machine or a cluster, and how many run at once.  Needs no Ray."""

import math
import os
import socket
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
    gpus = search.gpus_per_trial if search.gpus_per_trial is not None else min(1.0, cards)
    fitting = math.floor(cores / search.cpus_per_trial)
    if gpus > 0:
        fitting = min(fitting, math.floor(cards / gpus + 1e-9))
    if fitting < 1:
        raise ConfigError(
            f"--cpus-per-trial {search.cpus_per_trial:g}, --gpus-per-trial {gpus:g}: no trial fits, "
            f"there are {cores:g} cores and {cards:g} GPUs; lower them"
        )
    if precision == "fp16" and gpus == 0:
        raise ConfigError("train.precision: got fp16, which needs a GPU, and trials have none; use auto, bf16 or no")
    concurrent = min(fitting, search.trials, search.max_concurrent or fitting)
    return Resources(search.cpus_per_trial, gpus, concurrent, max(1, int(cores / concurrent)))


def check_resources(search: SearchConfig, precision: str) -> None:
    """Find out without starting anything whether a trial fits.

    Raises:
        ConfigError: it does not fit this machine, or nothing answers at the address of the cluster.
    """
    if search.ray_address is None or search.ray_address == "local":
        share(search, os.cpu_count() or 1, count_gpus(), precision)
    elif search.ray_address != "auto":
        probe(search.ray_address)


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
