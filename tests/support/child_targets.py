"""Functions that tests run in child processes; this module imports nothing that takes long."""

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def answer(connection: Connection, number: int) -> None:
    connection.send(number + 1)


def echo(connection: Connection) -> None:
    while True:
        connection.send(connection.recv())


def describe(connection: Connection) -> None:
    connection.send((os.nice(0), os.getsid(0) == os.getpid(), os.environ["FGSEARCH_TEST"]))


def sleep(connection: Connection, seconds: float) -> None:
    connection.send(os.getpid())
    time.sleep(seconds)


def fail(connection: Connection, error: Exception) -> None:
    raise error


def leave(connection: Connection, words: str, code: int) -> None:
    os.write(2, words.encode())
    os._exit(code)


def write_page(connection: Connection, location: Any, frames: bool) -> None:
    """Write a report of one letter, in place of `search.report.background.send_report`."""
    folder = Path(location.folder) / "report"
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text("x")
    connection.send(None)


def fail_to_write(connection: Connection, location: Any, frames: bool) -> None:
    os._exit(os.write(2, b"error: the ledger is broken"))


def write_forever(connection: Connection, location: Any, frames: bool) -> None:
    time.sleep(60)
