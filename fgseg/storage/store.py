"""Where files are kept, on a disk or in a bucket, behind few verbs: object storage knows no rename and no append.

A place is named by its *address*, a text: a path, or `s3://bucket/prefix`, where another server than Amazon's is given
by AWS_ENDPOINT_URL or `?endpoint_override=HOST:PORT&scheme=http`, and credentials come from the environment or ~/.aws.
Everything of a study and of a trial goes through here, so that it works on either:

    join(study, "trials", "3")                            the address of a folder below
    open_store(study).get("report/report.md")             a file's bytes; put, list, delete likewise
    with local_files(join(study, "model")) as folder: ... the same files as a folder, for libraries that read paths
"""

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from fgseg.config.errors import ConfigError
from fgseg.storage.retry import retry
from fgseg.storage.s3 import ObjectStore, check_bucket

REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Store(Protocol):
    """Named blobs at one address.  A blob appears whole or not at all; a name may lead below: `report/report.md`."""

    def put(self, name: str, data: bytes) -> None:
        """Write a blob, replacing one of the same name."""

    def get(self, name: str) -> bytes:
        """Read a blob; raises FileNotFoundError."""

    def folders(self) -> list[str]:
        """The names of the folders at the address itself, sorted."""

    def list(self) -> list[str]:
        """The names of the blobs at the address itself, sorted."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every blob at the address and below, by name; half-written ones included."""

    def delete(self, name: str) -> None:
        """Remove a blob; one that is gone already is no error."""

    def clear(self, keep: str | None = None) -> None:
        """Remove everything at the address and below, but for names at it that begin with `keep`."""

    def remove_temporary(self) -> None:
        """Remove what a killed writer left half written at the address."""


class LocalStore:
    """A folder as a store, on a disk or a shared file system."""

    SUFFIX = ".tmp"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @retry
    def put(self, name: str, data: bytes) -> None:
        """Write beside the name, then rename: a reader sees the old blob or the new one, never a part."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{self.SUFFIX}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @retry
    def get(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @retry
    def folders(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir()) if self.folder.is_dir() else []

    @retry
    def list(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_file() and p.suffix != self.SUFFIX)

    def sizes(self) -> dict[str, int]:
        found = {}
        for root, _, names in os.walk(self.folder):
            for path in (Path(root, name) for name in names):
                with suppress(FileNotFoundError):  # a writer at work has just renamed or dropped it
                    found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return found

    @retry
    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @retry
    def clear(self, keep: str | None = None) -> None:
        """The same; links are removed and never followed."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if keep is not None and path.name.startswith(keep):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if keep is None and self.folder.is_dir():
            self.folder.rmdir()

    @retry
    def remove_temporary(self) -> None:
        for path in self.folder.glob(f"*{self.SUFFIX}"):
            path.unlink(missing_ok=True)


def is_local(address: str) -> bool:
    """Whether an address is a path; raises ConfigError for a kind of storage that is unknown."""
    kind = REMOTE.match(address)
    if kind and kind[1] != "s3":
        raise ConfigError(f"{kind[0]} is no storage that is known; give a path or s3://bucket/prefix")
    return kind is None


def absolute(address: str) -> str:
    """The same address wherever it is read: a path from the root with links resolved; others without a last slash.

    Raises:
        ConfigError: it is no path, or a kind of storage that is unknown.
    """
    if is_local(address):
        try:
            return str(Path(address).expanduser().resolve())
        except (RuntimeError, ValueError, OSError) as error:  # nobody's home, a NUL, a loop of links
            raise ConfigError(f"{address!r} is no path ({error}); name a folder") from None
    path, mark, query = address.partition("?")
    return path.rstrip("/") + mark + query


def join(address: str, *names: str) -> str:
    """The address of what lies below another."""
    if is_local(address):
        return str(Path(address, *names))
    path, mark, query = address.partition("?")
    return "/".join([path.rstrip("/"), *names]) + mark + query


def open_store(address: str | Path) -> Store:
    """The store at an address; creates nothing.  Raises ConfigError for an unfit address."""
    if is_local(str(address)):
        return LocalStore(address)
    return ObjectStore(str(address))


def check_store(address: str, option: str) -> None:
    """Raise ConfigError, told of a command's option, unless an address can be written to; leaves no trace.

    Of a bucket it is only known whether it answers; what its owner allows shows with the first `put`.
    """
    try:
        if is_local(address):
            check_folder(Path(address))
        else:
            check_bucket(address)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless a folder can be written to, or be made."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked at ({error.strerror}); choose another folder") from None
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} is not writable; choose another folder or change its permissions")


@contextmanager
def local_files(address: str) -> Iterator[Path]:
    """The files at an address and below as a folder to read: itself where it is local, else a copy for the while."""
    if is_local(address):
        yield Path(address)
        return
    store = open_store(address)
    with tempfile.TemporaryDirectory(prefix="fgsearch-") as copy:
        local = LocalStore(copy)
        for name in store.sizes():
            local.put(name, store.get(name))
        yield Path(copy)
