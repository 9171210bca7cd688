"""Why a run ended, as a value that the loop over trials returns."""

from dataclasses import dataclass

from fgseg.cli import DONE, FAULT
from search.cli.signals import CODES


@dataclass(frozen=True)
class StopReason:
    """The end of a run: BUDGET, LOCK_LOST, or one made by `out_of_time`, `fault` or `signal`."""

    exit_code: int
    text: str = ""
    """What happened and what to do, as one line; empty for a budget that is used up and for a signal."""
    limit: str = ""
    """Setting whose time was used up before all trials had ended, max_hours or max_gpu_hours; else empty."""

    @property
    def is_signal(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the run."""
        return self.exit_code in CODES.values()


BUDGET = StopReason(DONE)
LOCK_LOST = StopReason(FAULT, "another driver has taken the study over")


def out_of_time(limit: str) -> StopReason:
    """Return the reason of a run whose time is used up; `limit` is max_hours or max_gpu_hours."""
    return StopReason(DONE, limit=limit)


def fault(text: str) -> StopReason:
    """Return the reason of a run that cannot go on, for example because the disk is full."""
    return StopReason(FAULT, text)


def signal(exit_code: int) -> StopReason:
    """Return the reason of a run that a signal stopped; `exit_code` is 130 or 143."""
    return StopReason(exit_code)
