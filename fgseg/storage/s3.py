"""A store in a bucket of Amazon S3 or of an S3-compatible server, accessed with pyarrow."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from fgseg.config.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables that select another server than Amazon's; pyarrow reads them."""
OPTIONS = (
    "endpoint_override",
    "scheme",
    "region",
    "tls_ca_file_path",
    "allow_bucket_creation",
    "allow_bucket_deletion",
)
"""Options of pyarrow's S3FileSystem that the query of an address may set."""
RETRIES = 11
"""Retries of a request while the server is unreachable, busy or failing.  AwsDefaultS3RetryStrategy retries at once,
then after 50 ms, and doubles the pause: 11 retries take 51 s (25 ms * 2 ** n in all; 8 were measured to take 6.4 s)."""
CHECK_RETRIES = 8
"""Retries while a bucket is checked before a study starts: a wrong endpoint is reported after 6.4 s."""

P = ParamSpec("P")
R = TypeVar("R")


class ObjectStoreError(OSError):
    """The object store refuses a request, or still fails after all retries; every trial of the study is affected."""


def as_object_store_error(call: Callable[P, R]) -> Callable[P, R]:
    """Decorate a call to raise its OSError as an ObjectStoreError in one line, except FileNotFoundError."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (FileNotFoundError, ObjectStoreError):
            raise
        except OSError as error:
            raise ObjectStoreError(f"the object store fails: {pyarrow_message(error)}") from error

    return wrapper


class ObjectStore:
    """The objects below an address such as s3://bucket/runs.  A put is atomic: no object is ever half written.

    Raises (from every method but `remove_temporary`):
        ObjectStoreError: the server refuses the request, or fails for about 51 s (`RETRIES`).
    """

    def __init__(self, address: str):
        self.system, self.path = connect(address, RETRIES)

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
        """Do nothing: an interrupted upload creates no object."""

    @as_object_store_error
    def _look(self, recursive: bool = False) -> "Sequence[FileInfo]":
        from pyarrow.fs import FileSelector

        found: Sequence[FileInfo] = self.system.get_file_info(
            FileSelector(self.path, allow_not_found=True, recursive=recursive)
        )
        return found


def connect(address: str, retries: int) -> "tuple[S3FileSystem, str]":
    """Return the file system of an address and the path bucket/prefix; raises ConfigError for an invalid address."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ConfigError(
            "an s3:// address holds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws"
        )
    if not parts.netloc:
        raise ConfigError(f"{address} names no bucket; give s3://bucket/prefix")
    here = tuple(os.environ.get(name, "") for name in ENDPOINTS)
    return open_system(parts.netloc, parts.query, here, retries), f"{parts.netloc}{unquote(parts.path).rstrip('/')}"


@functools.lru_cache
def open_system(bucket: str, query: str, endpoints: tuple[str, ...], retries: int) -> "S3FileSystem":
    """Open the client of a bucket, once per process and arguments.

    Args:
        bucket: name of the bucket.
        query: options of the address, `name=value&...` of `OPTIONS`.
        endpoints: values of the variables `ENDPOINTS`, so that a changed environment gives a new client.
        retries: of each request while the server is unreachable, busy or failing.

    Raises:
        ConfigError: an unknown option, or no such bucket at Amazon.
    """
    from pyarrow.fs import AwsDefaultS3RetryStrategy, S3FileSystem, resolve_s3_region

    given = dict(parse_qsl(query))
    if unknown := sorted(given.keys() - set(OPTIONS)):
        raise ConfigError(f"s3://{bucket}: no option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
    options = {key: value == "true" if key.startswith("allow_") else value for key, value in given.items()}
    try:
        if not options.keys() & {"region", "endpoint_override"} and not any(endpoints):
            options["region"] = resolve_s3_region(bucket)
        return S3FileSystem(
            **options,
            allow_delayed_open=True,  # saves two of three requests of a put
            retry_strategy=AwsDefaultS3RetryStrategy(max_attempts=retries),  # it counts retries, not attempts
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"s3://{bucket} cannot be opened ({pyarrow_message(error)})") from None


def check_bucket(address: str) -> None:
    """Raise ConfigError unless the bucket of an address exists, answers and may be read."""
    system, path = connect(address, CHECK_RETRIES)
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
