"""The Ray cluster of a run: a private one on this machine, or one that runs already."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from search.config import SearchConfig
from search.resources import Resources, share
from search.signals import Interrupted

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a box even when it is told to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # trials without a GPU keep the machine's own CUDA_VISIBLE_DEVICES
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "5",
}


@contextmanager
def cluster(search: SearchConfig, precision: str) -> Iterator[Resources]:
    """Start or join a cluster; gives what each trial gets, and leaves or ends the cluster at the end.

    Args:
        search: address of the cluster, and what a trial shall get.
        precision: the setting `train.precision`.

    Raises:
        ConfigError: not even one trial fits, or fp16 is asked for where trials have no GPU.
        Interrupted: SIGTERM came while Ray started.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    import ray

    try:
        ray.init(
            address=search.ray_address or "local",
            include_dashboard=False if search.ray_address is None else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=os.environ.get("RAY_TMPDIR") if search.ray_address is None else None,
        )
    except SystemExit:  # Ray's own handler of SIGTERM
        raise Interrupted from None
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of a trial is told by us, without a traceback
    try:
        total = ray.cluster_resources()
        yield share(search, total.get("CPU", 0), total.get("GPU", 0), precision)
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
