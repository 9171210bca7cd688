"""Handle SIGINT and SIGTERM: stop a command at once before anything is written, only record the signal later."""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from fgseg.cli import INTERRUPTED, TERMINATED, Parse, run_command

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
"""Exit code of a command by the signal that stopped it."""


class Interrupted(BaseException):
    """Raised by the handler of a signal.  Not an Exception, so that Ray Tune does not catch it."""


class Signals:
    """Signal handlers of one command, as a context manager; for the main thread only.

    `received` is the first signal, or None. While `gentle` is False, a signal raises Interrupted; afterwards it is
    only recorded.
    """

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
        """Set the handlers; may be repeated.  Ray 2 replaces them when it starts and when it ends."""
        for number in CODES:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; raise Interrupted unless `gentle`."""
        self.received = self.received or signal.Signals(number)
        if not self.gentle:
            raise Interrupted

    @property
    def code(self) -> int:
        """Exit code of the received signal; that of SIGTERM if none was received."""
        return CODES[self.received or signal.SIGTERM]


def run_with_signals(
    parse: Parse, command: Callable[[Namespace, Signals], int], arguments: Sequence[str] | None
) -> int:
    """Run a command that trains, with `Signals` installed; arguments and exit codes as in `run_command`."""
    with Signals() as signals:
        try:
            return run_command(parse, lambda options: command(options, signals), arguments)
        except Interrupted:
            print("interrupted; run the same command again", file=sys.stderr)
            return signals.code
