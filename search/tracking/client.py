"""What must be in place before MLflow's client is used, and the client itself: limits, a SQLite file that is whole."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.config.errors import FaultError
from search.ledger.database import has_database
from search.study.location import public_address
from search.tracking.run_schema import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The thread tries again by itself; a retry inside the client could create a run twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Closing a run would print the server's address, password and all.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextmanager
def environment() -> Iterator[None]:
    """Set the variables that MLflow's client reads where the user has not, and take them back at the end."""
    missing = {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            os.environ.pop(key, None)


def create_database(uri: str, fill: Callable[[str], None]) -> None:
    """Create the folder and the file of a SQLite address; what is there is left alone, as is any other address.

    Args:
        fill: makes the tables in an empty file whose address it is given, and closes it.

    The tables are made in a file of their own that takes its place when whole: killed half-way, MLflow's migrations
    (1.4 s) leave a file that no later start can open, and two processes at once get in each other's way.
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


def load_client() -> "type[MlflowClient]":
    """Import MLflow, and keep its own messages off the screen: failures are told once, by us."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def fill_database(uri: str, artifacts: str) -> None:
    """Make MLflow's tables in an empty SQLite file, and close it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts).engine.dispose()


class TrackingError(FaultError):
    """MLflow could not be read or written; the message is one line: address and cause, without credentials."""


@contextmanager
def open_client(uri: str) -> Iterator[Any]:
    """A client, or None where the address is that of a SQLite file that is not there: reading shall not create it."""
    with environment():
        try:
            yield load_client()(tracking_uri=uri) if has_database(uri) else None
        except Exception as error:
            # `from None`, since MLflow's own message may hold the address with its password.
            raise TrackingError(f"MLflow at {public_address(uri)}: {explain(error)}") from None


def pages(search: Any, *arguments: Any) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds."""
    token = None
    while True:
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
