"""Faults of a storage that may pass are waited for: a busy network, a file system or an object store that restarts."""

import errno
import functools
import re
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Faults of a (shared) file system that may pass."""
TRANSIENT_S3 = re.compile(
    r"AWS Error (NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    r"|UNKNOWN \(HTTP status 5\d\d\))"
)
"""The same of an object store: pyarrow gives them no number, only the name in the text."""
RETRY_PAUSES_S = (0.2, 1.0, 5.0)
"""Pauses before a failed call is repeated; after the last one the fault is told."""

P = ParamSpec("P")
R = TypeVar("R")


def retry(call: Callable[P, R]) -> Callable[P, R]:
    """Repeat a call while the storage has a fault that may pass; only for calls that may be repeated."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause_s in RETRY_PAUSES_S:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                if not is_transient(error):
                    raise
                time.sleep(pause_s)
        return call(*args, **kwargs)

    return wrapper


def is_transient(error: OSError) -> bool:
    """Whether a fault is of a kind that goes away by itself."""
    return error.errno in TRANSIENT or TRANSIENT_S3.search(str(error)) is not None
