"""Run a function in a child process that exchanges messages through a pipe and exits with its parent."""

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

POLL_S = 0.1
"""Seconds between two calls of `must_stop` while a message is awaited."""
EXIT_S = 5.0
"""Seconds that a child may take to exit after its pipe has closed; later its exit code is reported as None."""
_SPAWN = multiprocessing.get_context("spawn")
_STARTING = threading.Lock()


class ChildError(Exception):
    """A child failed, exited early, took too long or was stopped; the message is one line.

    A target may raise ChildError to choose the message.  Of any other exception the message is its type and text.
    """


class ChildProcess:
    """Run `target(connection, *arguments)` in a fresh Python process; leaving the context kills the process.

    The process has its own session, so that Ctrl-C on the terminal interrupts the parent only.  It exits when the
    parent exits or is killed.  It does not import the parent's `__main__`, so scripts need no `__main__` guard.
    Its standard output and error go to a temporary file, see `output`.

    Args:
        target: function at module level of an importable module; sends its results through `connection`.
        arguments: picklable; sent through the pipe, so the list of processes does not show them.
        environment: variables set in the child before the module of `target` is imported.
        niceness: added to the niceness of this process, which lowers the child's priority; 19 gives the lowest.

    Raises:
        ChildError: the system cannot start a process.
    """

    def __init__(
        self,
        target: Callable[..., None],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        niceness: int = 0,
    ):
        try:
            self._connection, child_connection = _SPAWN.Pipe()
            descriptor, name = tempfile.mkstemp(prefix="fgsearch-", suffix=".log")
        except OSError as error:
            raise ChildError(f"cannot start a process: {error}") from None
        self._output, self._log = os.fdopen(descriptor, errors="replace"), Path(name)
        setup = (child_connection, name, dict(environment or {}), niceness)
        self._process = _SPAWN.Process(target=_run, args=setup, daemon=True)
        try:
            with child_connection, _STARTING, _hide_main_module(), _block_interrupts(), _quiet_resource_tracker():
                self._process.start()
            self._connection.send((target, arguments))
        except (OSError, AssertionError) as error:  # AssertionError: this is a daemonic process, e.g. of a Pool
            self.close()
            raise ChildError(f"cannot start a process: {error}") from None
        except BaseException:  # arguments that cannot be pickled, or Ctrl-C
            self.close()
            raise

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, message: Any) -> None:
        """Send a picklable object to the child.

        Raises:
            ChildError: the child has exited.
        """
        try:
            self._connection.send(message)
        except OSError:
            raise self._exit_error() from None

    def has_message(self) -> bool:
        """Return whether `receive` would return or raise at once."""
        return self._connection.poll()

    def receive(self, limit_s: float = math.inf, must_stop: Callable[[], bool] = lambda: False) -> Any:
        """Wait for the next object that the child sends, and return it.

        Args:
            limit_s: seconds to wait at most.
            must_stop: called every `POLL_S`; true ends the wait.

        Raises:
            ChildError: the target raised an exception, the child exited, or the wait ended without a message.
        """
        end = time.monotonic() + limit_s
        while not self._connection.poll(POLL_S):
            if must_stop():
                raise ChildError("interrupted")
            if time.monotonic() > end:
                raise ChildError(f"it took more than {limit_s:g} s")
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            raise self._exit_error() from None
        if isinstance(message, ChildError):
            raise message
        return message

    def output(self) -> str:
        """Return what the child has printed on standard output and standard error up to now."""
        self._output.seek(0)
        return self._output.read()

    def close(self) -> None:
        """Kill the child if it still runs, and wait for its exit."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._process.close()
        self._connection.close()
        self._output.close()
        self._log.unlink(missing_ok=True)

    def _exit_error(self) -> ChildError:
        """Describe why the child exited without a message: its last line of output, or its exit code."""
        self._process.join(EXIT_S)
        lines = self.output().strip().splitlines()
        return ChildError(lines[-1] if lines else f"the process ended with exit code {self._process.exitcode}")


@contextmanager
def _hide_main_module() -> Iterator[None]:
    """Replace `__main__` by an empty module while a child is started.

    The child would import the parent's `__main__`, so that a script without a guard would run twice.  multiprocessing
    (Python 3.11) has no option against it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Start children with SIGINT blocked: until a child has its own session, Ctrl-C on the terminal reaches it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet_resource_tracker() -> Iterator[None]:
    """Suppress warnings of the resource tracker, a process that the first child starts.

    Work-around for Python 3.11 with tqdm 4.70: the tracker warns about a leaked semaphore, the lock of tqdm's progress
    bars, for each killed child.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _run(connection: Connection, log: str, environment: dict[str, str], niceness: int) -> None:
    """Run in the child: prepare the process, then call the target and send what it raises."""
    os.setsid()
    _redirect_output(Path(log))
    os.nice(niceness)
    os.environ.update(environment)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        target, arguments = connection.recv()  # imports the target's module
        target(connection, *arguments)
    except ChildError as error:
        connection.send(error)
    except Exception as error:
        traceback.print_exc()
        connection.send(ChildError(" ".join(f"{type(error).__name__}: {error}".split())))


def _redirect_output(log: Path) -> None:
    """Write standard output and error to a file, also those of C++ libraries, and unlink its name."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    log.unlink(missing_ok=True)


def _exit_with_parent() -> None:
    """Wait for the end of the parent, then exit at once, whatever the main thread does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
