"""The lock of a study: one row in the ledger's database, renewed by heartbeats, so that one driver runs a study.

Whether a holder on this host is alive is decided by its process, otherwise by the age of its heartbeat.  A database
server takes the time of heartbeats from its own clock; the clocks of hosts that share an SQLite file must differ by
much less than `TAKEOVER_S`.
"""

import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import psutil
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    cast,
    delete,
    extract,
    func,
    insert,
    inspect,
    literal,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from fgseg.results import SupersededError
from search.ledger.database import driver_message, has_database, open_engine, retry

HEARTBEAT_S = 5.0
"""Seconds between two heartbeats."""
TAKEOVER_S = 60.0
"""Age of a heartbeat in seconds from which a holder on another host counts as dead; twelve missed heartbeats."""
START_TOLERANCE_S = 5.0
"""Difference in seconds up to which two start times mean the same process: psutil derives them from a clock that the
system may adjust."""

LOCKS = Table(
    "fgsearch_lock",
    MetaData(),
    Column("study", String(512), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", Double, nullable=False),
    Column("token", String(32), nullable=False),
    Column("heartbeat", Double, nullable=False),
)

log = logging.getLogger(__name__)


class LockedError(Exception):
    """Another driver holds the lock; the message names its host, process and the age of its heartbeat."""


@dataclass(frozen=True)
class LockHolder:
    """The process that holds the lock of a study, as read from the database."""

    host: str
    """Host on which `pid` is valid, see `host_id`."""
    pid: int
    started: float
    """Start of the process, Unix seconds; distinguishes it from a later process with the same pid."""
    token: str
    """Random, new for every acquisition of the lock."""
    heartbeat: float
    """Time of the last heartbeat, Unix seconds."""
    age_s: float
    """Seconds from the last heartbeat to the read."""

    @property
    def name(self) -> str:
        """Name of the host."""
        return self.host.partition("/")[0]

    def is_alive(self) -> bool:
        """Return whether the holder's process runs, or on another host whether its heartbeat is recent."""
        if self.host != host_id():
            return self.age_s <= TAKEOVER_S
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class StudyLock:
    """Context manager that holds the lock of a study and renews it from a thread of its own.

    Entering raises LockedError if another driver holds the lock.  `is_held` may be called from any thread.
    """

    def __init__(self, url: str, study: str) -> None:
        self._engine = open_engine(url)
        self._study = study
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = threading.Event()
        self._renewed = float("-inf")
        self._thread = threading.Thread(target=self._send_heartbeats, name="study-lock", daemon=True)

    def is_held(self) -> bool:
        """Return False once another driver has taken the lock or no heartbeat was written for `TAKEOVER_S` seconds."""
        ended = self._lost.is_set() or self._released.is_set()
        return not ended and uptime() - self._renewed < TAKEOVER_S

    def verify(self, connection: Connection) -> None:
        """Check in the database that this driver holds the lock, and keep it until the transaction ends.

        With SQLite the lock is kept only from the first write of the transaction on.

        Raises:
            SupersededError: another driver has taken the lock, e.g. while this machine was suspended.
        """
        row = select(LOCKS.c.token).where(self.row_filter()).with_for_update(read=True)
        if connection.execute(row).one_or_none() is None:
            self.mark_lost()

    def row_filter(self) -> ColumnElement[bool]:
        """Return the condition on a row of `LOCKS` that holds as long as this driver has the lock."""
        return (LOCKS.c.study == self._study) & (LOCKS.c.token == self._token)

    def mark_lost(self) -> NoReturn:
        """Record that the lock is lost, and raise SupersededError."""
        self._lost.set()
        raise SupersededError("another driver has taken the study over")

    def __enter__(self) -> "StudyLock":
        self._acquire()
        self._renewed = uptime()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join(HEARTBEAT_S)
        try:
            with self._engine.begin() as connection:
                connection.execute(delete(LOCKS).where(LOCKS.c.study == self._study, LOCKS.c.token == self._token))
        except SQLAlchemyError as fault:
            log.warning("study %s: its lock stays until this process ends (%s)", self._study, driver_message(fault))
        self._engine.dispose()

    @retry
    def _acquire(self) -> None:
        LOCKS.metadata.create_all(self._engine)
        # Both fail only if another driver released or took the lock between the two statements: try again.
        while not (self._insert() or self._take_over()):
            log.debug("study %s: another driver released or took its lock", self._study)

    def _row(self) -> dict[str, Any]:
        started = psutil.Process().create_time()
        host, now = host_id(), database_now(self._engine)
        return {"host": host, "pid": os.getpid(), "started": started, "token": self._token, "heartbeat": now}

    def _insert(self) -> bool:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(LOCKS).values(study=self._study, **self._row()))
        except IntegrityError:
            return False
        return True

    def _take_over(self) -> bool:
        holder = read_row(self._engine, self._study)
        if holder is None:
            return False
        if holder.is_alive() and holder.token != self._token:
            raise LockedError(
                f"study {self._study} is in use by process {holder.pid} on host {holder.name} (last heartbeat "
                f"{holder.age_s:.0f} s ago); wait for it, stop it, or choose another --study"
            )
        return self._update(holder.token, holder.heartbeat)

    def _update(self, token: str, heartbeat: float) -> bool:
        """Take or renew the lock if its row has this token and no later heartbeat; one atomic statement."""
        row = (LOCKS.c.study == self._study, LOCKS.c.token == token, LOCKS.c.heartbeat <= heartbeat)
        with self._engine.begin() as connection:
            return connection.execute(update(LOCKS).where(*row).values(**self._row())).rowcount == 1

    def _send_heartbeats(self) -> None:
        while not (self._released.wait(HEARTBEAT_S) or not self.is_held()):
            asked = uptime()
            try:
                if self._update(self._token, float("inf")):
                    self._renewed = asked
                else:
                    self._lost.set()
            except SQLAlchemyError as fault:
                log.warning("study %s: no heartbeat written (%s)", self._study, driver_message(fault))


@retry
def read_holder(url: str, study: str) -> LockHolder | None:
    """Return the living holder of a study's lock, or None; does not create the database."""
    if not has_database(url):
        return None
    engine = open_engine(url)
    holder = read_row(engine, study) if inspect(engine).has_table(LOCKS.name) else None
    engine.dispose()
    return holder if holder and holder.is_alive() else None


def read_row(engine: Engine, study: str) -> LockHolder | None:
    """Return the holder in a study's row, dead or alive, or None without a row."""
    columns = [column for column in LOCKS.c if column.name != "study"]
    age = (database_now(engine) - LOCKS.c.heartbeat).label("age_s")
    with engine.connect() as connection:
        row = connection.execute(select(*columns, age).where(LOCKS.c.study == study)).one_or_none()
    return LockHolder(**row._mapping) if row else None


def host_id() -> str:
    """Identify the scope of a pid: the host's name and, on Linux, its boot id and pid namespace.

    The name alone is not enough: two containers may share it without seeing each other's processes.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}/{namespace.readlink()}"
    except OSError:
        return socket.gethostname()


def uptime() -> float:
    """Return monotonic seconds; on Linux they include the time in which the machine was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def database_now(engine: Engine) -> ColumnElement[float]:
    """Return the SQL expression for now in Unix seconds: the server's clock in PostgreSQL, this host's in SQLite."""
    if engine.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return literal(time.time(), Double)
