"""A training that is cut off after an epoch."""

from collections.abc import Callable

from fgseg.results import EpochResult


class PowerCut(Exception):
    """Ends the training."""


def cut_after(epoch: int) -> Callable[[EpochResult], None]:
    """What `train` calls with each epoch, to be cut off after this one."""

    def on_epoch(result: EpochResult) -> None:
        if result.epoch == epoch:
            raise PowerCut

    return on_epoch
