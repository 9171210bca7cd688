"""How the ledger's database is reached: engine options by address, and patience with one that is busy."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fgseg.config.errors import ConfigError, FaultError, one_line
from search.study.location import public_address

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Pauses before a failed call is repeated; after the last one the fault is told."""
SQLITE_TIMEOUT_S = 60
"""How long SQLite itself waits for another writer."""
CONNECT_TIMEOUT_S = 5
"""How long a server may take to let one connection in."""
SILENCE_S = 20
"""After how long a connection counts as broken whose other end is silent."""

P = ParamSpec("P")
R = TypeVar("R")


class LedgerError(FaultError):
    """The ledger's database still fails after retries (unreachable, read-only, disk full); the message is one line."""


def engine_options(url: str) -> dict[str, Any]:
    """Keyword arguments of SQLAlchemy's `create_engine` for an address.

    SQLite connections are cheap and opened anew each time, so that none is left open when a process forgets a ledger;
    a server's are kept, and tested before use since it may have been restarted.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_TIMEOUT_S}, "poolclass": NullPool}
    alive = {"keepalives_idle": SILENCE_S // 2, "keepalives_interval": SILENCE_S // 4, "keepalives_count": 2}
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 1000 * SILENCE_S}
    return {"connect_args": limits | alive, "pool_pre_ping": True}


def open_engine(url: str) -> Engine:
    """An engine of our own beside Optuna's; connects, and creates an SQLite file, only when it is used."""
    return create_engine(url, **engine_options(url))


def check_database(url: str) -> None:
    """Raise ConfigError unless a ledger's database answers, within a few times `CONNECT_TIMEOUT_S` at worst."""
    address = public_address(url)
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not Path(parsed.database or "").absolute().parent.is_dir():
            raise ConfigError(f"--ledger-url: the folder of {address} does not exist; create it first")
        return
    try:
        engine = open_engine(url)
    except ImportError:
        raise ConfigError("--ledger-url: PostgreSQL needs psycopg; pip install 'fgsearch[postgres]'") from None
    try:
        engine.connect().close()
    except DBAPIError as fault:
        raise ConfigError(
            f"--ledger-url: {address} cannot be used ({driver_message(fault)}); check address, user and password"
        ) from None
    finally:
        engine.dispose()


def driver_message(fault: SQLAlchemyError) -> str:
    """Return the first line of the database driver's message, without the explanations that may follow it."""
    return one_line(getattr(fault, "orig", fault), first_line=True)


def has_database(url: str) -> bool:
    """Whether an SQLite file is there; true for a server, which only connecting can tell."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()


def retry(call: Callable[P, R]) -> Callable[P, R]:
    """Repeat a call while the database is busy or away, or two processes make its tables at once.

    Only for calls that may be repeated.

    Raises (from the wrapped call):
        LedgerError: the database still fails after the last pause.
    """

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause_s in RETRY_PAUSES_S:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if database_error(error) is None:
                    raise
                time.sleep(pause_s)
        try:
            return call(*args, **kwargs)
        except Exception as error:
            fault = database_error(error)
            if fault is None:
                raise
            raise LedgerError(
                f"the ledger's database fails: {driver_message(fault)}; mend that, then run the same command again"
            ) from error

    return wrapper


def database_error(error: BaseException) -> DBAPIError | None:
    """The database's own complaint in an error or in what caused it (Optuna wraps its errors), or None."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, DBAPIError):
            return candidate
    return None


@retry
def list_studies(url: str) -> list[str]:
    """The names of all studies of a database; creates nothing."""
    if not has_database(url):
        return []
    engine = open_engine(url)
    with engine.connect() as connection:
        there = inspect(connection).has_table("studies")
        query = text("SELECT study_name FROM studies ORDER BY study_name")
        names = list(connection.execute(query).scalars()) if there else []
    engine.dispose()
    return names


@retry
def has_study(url: str, study: str) -> bool:
    """Whether a database holds an Optuna study of this name; creates nothing."""
    if not has_database(url):
        return False
    query = text("SELECT 1 FROM studies WHERE study_name = :name")
    engine = open_engine(url)
    with engine.connect() as connection:
        found = inspect(connection).has_table("studies") and connection.execute(query, {"name": study}).first()
    engine.dispose()
    return bool(found)
