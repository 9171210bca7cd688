"""Ctrl-C and SIGTERM: acted on at once while nothing is written, only noted afterwards."""

import signal
from types import FrameType, TracebackType
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The exit code of a command that ended by a signal."""


class Interrupted(BaseException):
    """The run has to stop.  Not an Exception, so that Ray Tune lets it pass at once."""


class Signals:
    """The handlers of one command; `received` is the first signal that came, `gentle` whether it is only noted."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.gentle = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        self.before = {number: signal.getsignal(number) for number in CODES}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Set the handlers; to be called again where Ray may have set its own."""
        for number in CODES:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; raise Interrupted where that can leave nothing half done."""
        self.received = self.received or signal.Signals(number)
        if not self.gentle:
            raise Interrupted

    @property
    def code(self) -> int:
        """The exit code that goes with the signal."""
        return CODES[self.received or signal.SIGTERM]
