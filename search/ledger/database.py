"""Connect to the ledger's database: engine options by address, and retries while it is busy or unreachable."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, bindparam, create_engine, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fgseg.config.errors import ConfigError, FaultError, one_line
from fgseg.storage.retry import retry as make_retry
from search.ledger.tables import FORMAT, STUDIES
from search.study.location import public_address

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Seconds to wait before a failed call is repeated; after the last one LedgerError is raised."""
SQLITE_TIMEOUT_S = 60
"""Seconds that SQLite itself waits for another writer."""
CONNECT_TIMEOUT_S = 5
"""Seconds that a server may take to accept a connection."""
SILENCE_S = 20
"""Seconds after which a connection without any answer counts as broken."""
OLD_TABLE = "fgsearch_lock"
"""Table of versions that kept their studies in Optuna's tables."""
FIND_STUDY = select(STUDIES.c.id, STUDIES.c.format).where(STUDIES.c.name == bindparam("of_name"))


class LedgerError(FaultError):
    """The ledger's database still fails after retries (unreachable, read-only, disk full); the message is one line."""


def engine_options(url: str) -> dict[str, Any]:
    """Return keyword arguments of SQLAlchemy's `create_engine` for an address.

    SQLite connections are cheap: each use opens a new one, so that none stays open.  Connections to a server are
    pooled, and tested before use because the server may have been restarted.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_TIMEOUT_S}, "poolclass": NullPool}
    alive = {"keepalives_idle": SILENCE_S // 2, "keepalives_interval": SILENCE_S // 4, "keepalives_count": 2}
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 1000 * SILENCE_S}
    return {"connect_args": limits | alive, "pool_pre_ping": True}


def open_engine(url: str) -> Engine:
    """Create an engine; it connects, and creates an SQLite file, only when it is used."""
    return create_engine(url, **engine_options(url))


def check_database(url: str) -> None:
    """Raise ConfigError unless a ledger's database answers; takes a few times `CONNECT_TIMEOUT_S` at most."""
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
    """Return whether an SQLite file exists; true for a server, which is not contacted."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()


def ledger_error(error: Exception) -> LedgerError:
    """Return the error to raise for a database that still fails after all retries."""
    assert isinstance(error, DBAPIError)
    return LedgerError(
        f"the ledger's database (study.db of the study, or --ledger-url) fails: {driver_message(error)}; fix that, "
        "then run the same command again"
    )


retry = make_retry(lambda error: isinstance(error, DBAPIError), RETRY_PAUSES_S, ledger_error)
"""Decorator: repeat a call while the database is busy or unreachable, or two processes create its tables at once.

Only for calls that may be repeated.  Raises LedgerError if the database still fails after the last pause.
"""


@retry
def list_studies(url: str) -> list[str]:
    """List the names of all studies of a database; creates nothing."""
    if not has_database(url):
        return []
    with opened(url) as engine, engine.connect() as connection:
        there = inspect(connection).has_table(STUDIES.name)
        return list(connection.execute(select(STUDIES.c.name).order_by(STUDIES.c.name)).scalars()) if there else []


@retry
def study_id(url: str, study: str) -> int | None:
    """Return the id of a study, or None if the database has no study of this name; creates nothing.

    Raises:
        LedgerError: an older version of fgsearch has written the database.
    """
    if not has_database(url):
        return None
    with opened(url) as engine, engine.connect() as connection:
        tables = inspect(connection)
        if not tables.has_table(STUDIES.name):
            if tables.has_table(OLD_TABLE):
                raise outdated(study)
            return None
        row = connection.execute(FIND_STUDY, {"of_name": study}).one_or_none()
    if row is not None and row.format != FORMAT:
        raise outdated(study)
    return None if row is None else row.id


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """Open an engine, and dispose of it at the end of the block."""
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def outdated(study: str) -> LedgerError:
    """Return the error for a study in tables of another version."""
    return LedgerError(f"study {study} was written by another version of fgsearch; begin a new study")
