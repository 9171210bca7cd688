"""The Ray cluster of a run: a private one on this machine, or one that runs already."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fgseg.config import ConfigError
from search.config import SearchConfig
from search.tune import Resources

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a box even when it is told to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # trials without a GPU keep the machine's own CUDA_VISIBLE_DEVICES
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "5",
}


@contextmanager
def cluster(search: SearchConfig) -> Iterator[Resources]:
    """Start or join a cluster; gives what each trial gets, and leaves or ends the cluster at the end.

    Raises:
        ConfigError: not even one trial fits, or fp16 is asked for where there is no GPU.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    import ray

    ray.init(
        address=search.ray_address or "local",
        include_dashboard=False if search.ray_address is None else None,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=os.environ.get("RAY_TMPDIR") if search.ray_address is None else None,
    )
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of a trial is told by us, without a traceback
    try:
        yield share(search, ray.cluster_resources())
    finally:
        ray.shutdown()


class Pulse:
    """Whether the cluster still lives, asked of Ray at most every few seconds."""

    PERIOD_S = 5.0

    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.alive = True

    def lost(self) -> bool:
        """True once no node of the cluster is alive: trials would wait for ever."""
        if time.monotonic() - self.asked > self.PERIOD_S:
            import ray

            self.asked = time.monotonic()
            self.alive = any(node["Alive"] for node in ray.nodes())
        return not self.alive


def share(search: SearchConfig, total: dict[str, float]) -> Resources:
    """Divide a cluster's processor cores and GPUs among trials; raises ConfigError where none fits."""
    cores, cards = total.get("CPU", 0), total.get("GPU", 0)
    gpus = search.gpus_per_trial if search.gpus_per_trial is not None else min(1.0, cards)
    fitting = math.floor(cores / search.cpus_per_trial)
    if gpus > 0:
        fitting = min(fitting, math.floor(cards / gpus + 1e-9))
    if fitting < 1:
        raise ConfigError(
            f"--cpus-per-trial {search.cpus_per_trial:g}, --gpus-per-trial {gpus:g}: no trial fits, "
            f"the cluster has {cores:g} cores and {cards:g} GPUs; lower them"
        )
    concurrent = min(fitting, search.trials, search.max_concurrent or fitting)
    return Resources(search.cpus_per_trial, gpus, concurrent, max(1, int(cores / concurrent)))
