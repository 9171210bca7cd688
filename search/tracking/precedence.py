"""Let the driver's events go before the requests of the threads that write MLflow and `optuna.db`.

All of them share the interpreter lock: beside a busy thread, an event of the driver takes about twice its time.
"""

import threading
from collections.abc import Callable
from typing import Any

LONGEST_PAUSE_S = 0.05
"""Seconds for which a request waits at most, so that a driver that is always busy does not stop the views."""


class Precedence:
    """Knows when the driver handles an event.

    The driver's thread handles each event in a `with` block; other threads call `pause` before each request.
    """

    def __init__(self) -> None:
        self._idle = threading.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        self._idle.set()

    def pause(self) -> None:
        """Wait until the driver handles no event, for LONGEST_PAUSE_S at most."""
        self._idle.wait(LONGEST_PAUSE_S)


class PausingClient:
    """A client that pauses before every request.

    Args:
        client: whose methods are requests, such as MlflowClient.
        pause: called before each of them.
    """

    def __init__(self, client: Any, pause: Callable[[], None]) -> None:
        self._client, self._pause = client, pause

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def request(*arguments: Any, **options: Any) -> Any:
            self._pause()
            return method(*arguments, **options)

        return request
