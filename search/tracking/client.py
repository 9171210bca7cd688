"""MLflow's client: its environment variables, a complete SQLite database, and one error class."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.config.errors import FaultError
from fgseg.storage.store import sync_folder
from search.ledger.database import has_database
from search.study.location import public_address
from search.tracking.run_schema import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    # The tracker's thread retries; a retry inside the client could create a run twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # MLflow 3 prints the server's address, including its password, when a run is closed.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Variables for MLflow's client; a value that the user has set is kept."""


@contextmanager
def environment() -> Iterator[None]:
    """Set the variables of `ENVIRONMENT` that the user has not set; removes them at the end.  Changes os.environ."""
    missing = {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            os.environ.pop(key, None)


def create_database(uri: str, fill: Callable[[str], None]) -> None:
    """Create the folder and the file of a SQLite address.  Does nothing if the file exists, or for other addresses.

    Args:
        uri: address of the database.
        fill: creates the tables in the empty database whose address it receives, and closes it.

    The tables are created in a temporary file, which is renamed when complete.  MLflow 3's migrations take 1.4 s: if
    killed half-way, they leave a database that no later start can open, and two processes at once fail.  May be called
    by several processes; a file lock serialises them.
    """
    from filelock import FileLock
    from sqlalchemy.engine import make_url

    address = make_url(uri) if uri.startswith("sqlite:///") else None
    if address is None or address.database in (None, "", ":memory:") or Path(str(address.database)).exists():
        return
    path = Path(str(address.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            unfinished = path.with_name(f".{path.name}.new")
            for leftover in path.parent.glob(f"{unfinished.name}*"):
                leftover.unlink()
            fill(str(address.set(database=str(unfinished))))
            unfinished.replace(path)
            sync_folder(path.parent)


def load_client() -> "type[MlflowClient]":
    """Import MLflow (1.1 s) and silence its loggers, since the tracker reports failures itself; returns the class."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def fill_database(uri: str, artifacts: str) -> None:
    """Create MLflow's tables in an empty SQLite database, and close it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts).engine.dispose()


class TrackingError(FaultError):
    """A read from or write to MLflow failed; the message is one line: address and cause, without credentials."""


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Set MLflow's variables, and raise every exception inside the context as TrackingError."""
    with environment():
        try:
            yield
        except Exception as error:
            # `from None`: MLflow's own message may contain the address with its password.
            raise TrackingError(f"MLflow at {public_address(uri)}: {explain(error)}") from None


@contextmanager
def open_client(uri: str) -> Iterator[Any]:
    """Yield a client, or None for a SQLite file that does not exist, since reading must not create it.

    Raises:
        TrackingError: for any exception inside the context.
    """
    with tracking_errors(uri):
        yield load_client()(tracking_uri=uri) if has_database(uri) else None


def pages(search: Any, *arguments: Any) -> Iterator[Any]:
    """Yield every result of one of MLflow's paged searches, such as `client.search_runs`."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
