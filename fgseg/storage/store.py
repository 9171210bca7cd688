"""Blobs on a disk or in a bucket, behind one interface without rename and append, which object stores lack.

A store has an *address*: a path, or `s3://bucket/prefix`.  AWS_ENDPOINT_URL or
`?endpoint_override=HOST:PORT&scheme=http` selects another server than Amazon's; credentials come from the environment
or ~/.aws.  All files of studies and trials are read and written here:

    join(study, "trials", "3")                            the address of a subfolder
    open_store(study).get("report/report.md")             the bytes of a file; put, list, delete likewise
    with local_files(join(study, "model")) as folder: ... the files as a folder, for libraries that read paths
"""

import errno
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
TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of a network file system that may pass by themselves."""
RETRY_PAUSES_S = (0.2, 1.0, 5.0)
"""Seconds to wait before a failed call on files is repeated; after the last one its error is raised."""

retry_files = retry(lambda error: isinstance(error, OSError) and error.errno in TRANSIENT, RETRY_PAUSES_S)
"""Decorator for calls on local files."""


class Store(Protocol):
    """Named blobs at one address.  Writing a blob is atomic; a name may contain slashes: `report/report.md`."""

    def put(self, name: str, data: bytes) -> None:
        """Write a blob, replacing one of the same name."""

    def get(self, name: str) -> bytes:
        """Read a blob; raises FileNotFoundError."""

    def folders(self) -> list[str]:
        """Return the names of the folders directly at the address, sorted."""

    def list(self) -> list[str]:
        """Return the names of the blobs directly at the address, sorted."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every blob at and below the address by name, including half-written blobs."""

    def delete(self, name: str) -> None:
        """Remove a blob; does nothing if it does not exist."""

    def clear(self, keep: str | None = None) -> None:
        """Remove everything at and below the address, except names directly at it that begin with `keep`."""

    def remove_temporary(self) -> None:
        """Remove half-written blobs that a killed writer left at the address."""


class LocalStore:
    """A store in a folder, on a disk or a shared file system."""

    SUFFIX = ".tmp"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @retry_files
    def put(self, name: str, data: bytes) -> None:
        """Write to a temporary file, then rename it: a reader gets the old blob or the new one, never a part.

        The call returns when file and rename are on the disk: the ledger may then record what depends on them.
        """
        path = self.folder / name
        new_folders = [folder for folder in path.parents if not folder.exists()]
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
        for folder in (path.parent, *(new.parent for new in new_folders)):
            sync_folder(folder)

    @retry_files
    def get(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @retry_files
    def folders(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir()) if self.folder.is_dir() else []

    @retry_files
    def list(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_file() and p.suffix != self.SUFFIX)

    def sizes(self) -> dict[str, int]:
        found = {}
        for root, _, names in os.walk(self.folder):
            for path in (Path(root, name) for name in names):
                with suppress(FileNotFoundError):  # another process has just renamed or deleted it
                    found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return found

    @retry_files
    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @retry_files
    def clear(self, keep: str | None = None) -> None:
        """Remove everything, see `Store.clear`; symbolic links are removed, never followed."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if keep is not None and path.name.startswith(keep):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if keep is None and self.folder.is_dir():
            self.folder.rmdir()

    @retry_files
    def remove_temporary(self) -> None:
        for path in self.folder.glob(f"*{self.SUFFIX}"):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk; does nothing on a file system that cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_local(address: str) -> bool:
    """Return whether an address is a path; raises ConfigError for an unknown kind of storage."""
    kind = REMOTE.match(address)
    if address.startswith("s3:") and not kind:
        raise ConfigError(f"{address} is not an address of a bucket; give a path or s3://bucket/prefix")
    if kind and kind[1] != "s3":
        raise ConfigError(f"{kind[0]} is an unknown kind of storage; give a path or s3://bucket/prefix")
    return kind is None


def absolute(address: str) -> str:
    """Make an address independent of the current folder: resolve a path and its links; drop trailing slashes of others.

    Raises:
        ConfigError: not a valid path, or an unknown kind of storage.
    """
    if is_local(address):
        try:
            return str(Path(address).expanduser().resolve())
        except (RuntimeError, ValueError, OSError) as error:  # unknown user after ~, NUL byte, loop of links
            raise ConfigError(f"{address!r} is not a path ({error}); name a folder") from None
    path, mark, query = address.partition("?")
    return path.rstrip("/") + mark + query


def join(address: str, *names: str) -> str:
    """Return the address of a file or folder below another address."""
    if is_local(address):
        return str(Path(address, *names))
    path, mark, query = address.partition("?")
    return "/".join([path.rstrip("/"), *names]) + mark + query


def open_store(address: str | Path) -> Store:
    """Open the store at an address without creating it; raises ConfigError for an invalid address."""
    if is_local(str(address)):
        return LocalStore(address)
    return ObjectStore(str(address))


def check_store(address: str, option: str) -> None:
    """Raise ConfigError, naming the command line's option, unless an address is writable; writes nothing.

    A bucket is only checked for an answer: missing write permission is detected by the first `put`.
    """
    try:
        if is_local(address):
            check_folder(Path(address))
        else:
            check_bucket(address)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def create_folder(folder: Path, option: str) -> None:
    """Create a folder; raises ConfigError, naming the command line's option, if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder)
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be created ({error.strerror}); name another folder") from None
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless a folder is writable or can be created."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read ({error.strerror}); choose another folder") from None
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} is not writable; choose another folder or change its permissions")


@contextmanager
def local_files(address: str) -> Iterator[Path]:
    """Provide the files at and below an address as a local folder to read: the folder itself, or a temporary copy."""
    if is_local(address):
        yield Path(address)
        return
    store = open_store(address)
    with tempfile.TemporaryDirectory(prefix="fgsearch-") as copy:
        local = LocalStore(copy)
        for name in store.sizes():
            local.put(name, store.get(name))
        yield Path(copy)
