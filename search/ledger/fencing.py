"""Fencing: only the latest attempt of a trial may write to it, and only while the trial is open."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from fgseg.results import SupersededError
from search.ledger.database import retry
from search.ledger.records import read_attempt

P = ParamSpec("P")
R = TypeVar("R")


def check_attempt(trial: FrozenTrial, attempt: int) -> FrozenTrial:
    """Return the trial; raises SupersededError unless `attempt` is its latest."""
    if attempt != read_attempt(trial):
        raise SupersededError(f"trial {trial.number}: attempt {attempt} is superseded by {read_attempt(trial)}")
    return trial


def fenced(write: Callable[P, R]) -> Callable[P, R]:
    """Decorate a write: retry while the database is busy; raise SupersededError if another driver ended the trial."""

    @retry
    @functools.wraps(write)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return write(*args, **kwargs)
        except UpdateFinishedTrialError as error:
            raise SupersededError("another driver has ended this trial") from error

    return wrapper
