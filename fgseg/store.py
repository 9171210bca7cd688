"""Where a trial's files are kept, behind four verbs, since object storage knows no rename and no append."""

import os
import uuid
from pathlib import Path
from typing import Protocol


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


class LocalStore:
    """A folder as a store, on a disk or a shared file system."""

    SUFFIX = ".tmp"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

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

    def get(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def list(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_file() and p.suffix != self.SUFFIX)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed writer left half written."""
        for path in self.folder.glob(f"*{self.SUFFIX}"):
            path.unlink(missing_ok=True)
