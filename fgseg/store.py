"""Where a trial's files are kept, behind four verbs, since object storage knows no rename and no append."""

import errno
import functools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Faults of a (shared) file system that may pass."""
RETRY_PAUSES_S = (0.2, 1.0, 5.0)
"""Pauses before a failed call is repeated; after the last one the fault is told."""

P = ParamSpec("P")
R = TypeVar("R")


def patient(call: Callable[P, R]) -> Callable[P, R]:
    """Repeat a call while the file system has a fault that may pass; only for calls that may be repeated."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause_s in RETRY_PAUSES_S:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                time.sleep(pause_s)
        return call(*args, **kwargs)

    return wrapper


class Store(Protocol):
    """Flat, named blobs.  A blob appears whole or not at all."""

    def put(self, name: str, data: bytes) -> None:
        """Write a blob, replacing one of the same name."""

    def get(self, name: str) -> bytes:
        """Read a blob; raises FileNotFoundError."""

    def list(self) -> list[str]:
        """The names of all blobs, sorted."""

    def delete(self, name: str) -> None:
        """Remove a blob; one that is gone already is no error."""

    def sweep(self) -> None:
        """Remove what a killed writer left half written."""


class LocalStore:
    """A folder as a store, on a disk or a shared file system."""

    SUFFIX = ".tmp"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @patient
    def put(self, name: str, data: bytes) -> None:
        """Write beside the name, then rename: a reader sees the old blob or the new one, never a part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.{uuid.uuid4().hex}{self.SUFFIX}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @patient
    def get(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @patient
    def list(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_file() and p.suffix != self.SUFFIX)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        for path in self.folder.glob(f"*{self.SUFFIX}"):
            path.unlink(missing_ok=True)
