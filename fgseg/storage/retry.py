"""Repeat calls whose error may pass by itself, such as those of a busy network file system or database."""

import functools
from collections.abc import Callable, Sequence
from time import sleep
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def retry(
    is_transient: Callable[[Exception], bool],
    pauses_s: Sequence[float],
    give_up: Callable[[Exception], Exception] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that repeats a call while it raises transient errors; only for calls that may be repeated.

    Args:
        is_transient: whether an error may pass by itself; any other error is raised at once.
        pauses_s: seconds to wait before each repetition, hence `len(pauses_s) + 1` calls at most.
        give_up: gives the exception to raise for a transient error of the last call; by default that error itself.
    """

    def decorator(call: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(call)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            pauses = iter(pauses_s)
            while True:
                try:
                    return call(*args, **kwargs)
                except Exception as error:
                    if not is_transient(error):
                        raise
                    pause_s = next(pauses, None)
                    if pause_s is None:
                        if give_up is None:
                            raise
                        raise give_up(error) from error
                sleep(pause_s)

        return wrapper

    return decorator
