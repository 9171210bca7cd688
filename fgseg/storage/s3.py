"""A store in a bucket of S3, or of a server that speaks its language; through pyarrow, which reads the credentials."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from fgseg.config.errors import ConfigError, one_line
from fgseg.storage.retry import retry

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables that name another server than Amazon's; pyarrow reads them."""

P = ParamSpec("P")
R = TypeVar("R")


class ObjectStoreError(OSError):
    """The object store refuses or does not answer, also after some patience: every trial will meet it."""


def as_object_store_error(call: Callable[P, R]) -> Callable[P, R]:
    """Make a call patient; a fault that stays becomes an ObjectStoreError in one line, a missing blob excepted."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return retry(call)(*args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ObjectStoreError(f"the object store fails: {pyarrow_message(error)}") from error

    return wrapper


class ObjectStore:
    """The objects below an address such as s3://bucket/runs; a put is atomic, so that nothing is ever half written.

    Raises (from every method but `sweep`):
        ObjectStoreError: the store refuses or does not answer.
    """

    def __init__(self, address: str):
        self.system, self.path = connect(address)

    @as_object_store_error
    def put(self, name: str, data: bytes) -> None:
        with self.system.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(data)

    @as_object_store_error
    def get(self, name: str) -> bytes:
        with self.system.open_input_file(f"{self.path}/{name}") as file:
            return bytes(file.readall())

    def folders(self) -> list[str]:
        return sorted(info.base_name for info in self._look() if not info.is_file)

    def list(self) -> list[str]:
        return sorted(info.base_name for info in self._look() if info.is_file)

    def sizes(self) -> dict[str, int]:
        start = len(self.path) + 1
        return {info.path[start:]: info.size for info in self._look(recursive=True) if info.is_file}

    @as_object_store_error
    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.system.delete_file(f"{self.path}/{name}")

    @as_object_store_error
    def clear(self, keep: str | None = None) -> None:
        if keep is not None:
            for name in self.sizes():
                if not name.startswith(keep):
                    self.delete(name)
            return
        with suppress(FileNotFoundError):
            self.system.delete_dir(self.path)

    def remove_temporary(self) -> None:
        """Nothing: an upload that was cut off is no object."""

    @as_object_store_error
    def _look(self, recursive: bool = False) -> "Sequence[FileInfo]":
        from pyarrow.fs import FileSelector

        found: Sequence[FileInfo] = self.system.get_file_info(
            FileSelector(self.path, allow_not_found=True, recursive=recursive)
        )
        return found


def connect(address: str) -> "tuple[FileSystem, str]":
    """The file system behind an address, and the path bucket/prefix in it.  Raises ConfigError for an unfit address."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ConfigError(
            "an s3:// address holds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws"
        )
    if not parts.netloc:
        raise ConfigError(f"{address} names no bucket; give s3://bucket/prefix")
    here = tuple(os.environ.get(name, "") for name in ENDPOINTS)
    return open_system(parts.netloc, parts.query, here), f"{parts.netloc}{unquote(parts.path).rstrip('/')}"


@functools.lru_cache
def open_system(bucket: str, query: str, endpoints: tuple[str, ...]) -> "FileSystem":
    """One client for each bucket and server of this process; `endpoints` tells environments apart."""
    from pyarrow.fs import FileSystem

    options = "&".join(filter(None, [query, "allow_delayed_open=true"]))  # saves two of three requests of a put
    try:
        return FileSystem.from_uri(f"s3://{bucket}?{options}")[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"s3://{bucket} cannot be opened ({pyarrow_message(error)})") from None


def check_bucket(address: str) -> None:
    """Raise ConfigError unless the bucket of an address answers and may be looked at."""
    system, path = connect(address)
    bucket = path.split("/")[0]
    try:
        there = system.get_file_info(bucket)
    except OSError as error:
        raise ConfigError(
            f"bucket {bucket} cannot be used ({pyarrow_message(error)}); check its name, AWS_ENDPOINT_URL and "
            "the credentials"
        ) from None
    if there.type.name == "NotFound":
        raise ConfigError(f"there is no bucket {bucket}; create it first")


def pyarrow_message(error: BaseException) -> str:
    """Format an error of pyarrow in one line, without the request ID and further details."""
    return re.sub(r" \(Request ID: .*|; Details: .*", "", one_line(error))
