"""The lock of a study: columns of its row in the ledger, renewed by heartbeats, so that one driver runs a study.

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
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import psutil
from sqlalchemy import ColumnElement, Double, Engine, Select, Update, bindparam, cast, extract, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from fgseg.results import SupersededError
from search.ledger.database import driver_message, retry
from search.ledger.tables import STUDIES

HEARTBEAT_S = 5.0
"""Seconds between two heartbeats."""
TAKEOVER_S = 60.0
"""Age of a heartbeat in seconds from which a holder on another host counts as dead; twelve missed heartbeats."""
START_TOLERANCE_S = 5.0
"""Difference in seconds up to which two start times mean the same process: psutil derives them from a clock that the
system may adjust."""

LOCK_COLUMNS = ("lock_host", "lock_pid", "lock_started", "lock_token", "lock_heartbeat")
"""Columns of `STUDIES`; all NULL while nobody holds the lock."""

STUDY = STUDIES.c.id == bindparam("of_study")
OURS = STUDIES.c.lock_token == bindparam("of_token")
"""Condition on a row of `STUDIES` that holds as long as a driver has the lock; its parameter is `StudyLock.key`."""
RELEASE = update(STUDIES).where(STUDY, OURS).values(dict.fromkeys(LOCK_COLUMNS))

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

    def __init__(self, engine: Engine, study: int, name: str) -> None:
        """Make the lock of the study with this id and name; does not acquire it."""
        self._engine = engine
        self._study = study
        self._name = name
        self._token = uuid.uuid4().hex
        self._renewal = update(STUDIES).where(STUDY, OURS).values(lock_heartbeat=database_now(engine.dialect.name))
        self._released = threading.Event()
        self._lost = threading.Event()
        self._renewed = float("-inf")
        self._thread = threading.Thread(target=self._send_heartbeats, name="study-lock", daemon=True)

    def is_held(self) -> bool:
        """Return False once another driver has taken the lock or no heartbeat was written for `TAKEOVER_S` seconds."""
        ended = self._lost.is_set() or self._released.is_set()
        return not ended and uptime() - self._renewed < TAKEOVER_S

    @property
    def key(self) -> dict[str, str]:
        """The parameter of `OURS` for this driver."""
        return {"of_token": self._token}

    def mark_lost(self) -> NoReturn:
        """Record that the lock is lost, and raise SupersededError."""
        self._lost.set()
        raise SupersededError("another driver has taken the study over")

    def __enter__(self) -> "StudyLock":
        asked = uptime()
        self._acquire()
        self._renewed = asked
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join(HEARTBEAT_S)
        try:
            self._update(RELEASE, **self.key)
        except SQLAlchemyError as fault:
            log.warning("study %s: its lock stays until this process ends (%s)", self._name, driver_message(fault))

    @retry
    def _acquire(self) -> None:
        while True:
            holder = read_row(self._engine, self._study)
            if holder is not None and holder.is_alive() and holder.token != self._token:
                raise LockedError(
                    f"study {self._name} is in use by process {holder.pid} on host {holder.name} (last heartbeat "
                    f"{holder.age_s:.0f} s ago); wait for it, stop it, or choose another --study"
                )
            if self._update(update(STUDIES).where(STUDY, unchanged(holder)).values(self._row())):
                return
            log.debug("study %s: another driver released or took its lock", self._name)

    def _row(self) -> dict[str, Any]:
        values = (host_id(), os.getpid(), psutil.Process().create_time(), self._token)
        return dict(zip(LOCK_COLUMNS, (*values, database_now(self._engine.dialect.name)), strict=True))

    def _update(self, change: Update, **parameters: str) -> bool:
        """Change the study's row if it fulfils the condition of the statement; returns whether it did."""
        with self._engine.begin() as connection:
            return connection.execute(change, {"of_study": self._study} | parameters).rowcount == 1

    def _renew(self) -> bool:
        """Write a heartbeat; returns False if another driver has taken the lock."""
        return self._update(self._renewal, **self.key)

    def _send_heartbeats(self) -> None:
        while not (self._released.wait(HEARTBEAT_S) or not self.is_held()):
            asked = uptime()
            try:
                if self._renew():
                    self._renewed = asked
                else:
                    self._lost.set()
            except SQLAlchemyError as fault:
                log.warning("study %s: no heartbeat written (%s)", self._name, driver_message(fault))


def unchanged(holder: LockHolder | None) -> ColumnElement[bool]:
    """Return the condition that a study's row still has this holder, without a later heartbeat; None: no holder."""
    if holder is None:
        return STUDIES.c.lock_token.is_(None)
    return (STUDIES.c.lock_token == holder.token) & (STUDIES.c.lock_heartbeat <= holder.heartbeat)


@retry
def read_holder(engine: Engine, study: int) -> LockHolder | None:
    """Return the living holder of a study's lock, or None."""
    holder = read_row(engine, study)
    return holder if holder and holder.is_alive() else None


def read_row(engine: Engine, study: int) -> LockHolder | None:
    """Return the holder in a study's row, dead or alive, or None."""
    with engine.connect() as connection:
        row = connection.execute(find_holder(engine.dialect.name), {"of_study": study}).one_or_none()
    return LockHolder(**row._asdict()) if row and row.token else None


@cache
def find_holder(dialect: str) -> Select[Any]:
    """Return the statement that reads the fields of a `LockHolder`; built once, see transaction.py."""
    columns = [STUDIES.c[name].label(name.removeprefix("lock_")) for name in LOCK_COLUMNS]
    return select(*columns, (database_now(dialect) - STUDIES.c.lock_heartbeat).label("age_s")).where(STUDY)


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


def database_now(dialect: str) -> ColumnElement[float]:
    """Return the SQL expression for now in Unix seconds: the server's clock in PostgreSQL, this host's in SQLite."""
    if dialect == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return bindparam("now", callable_=host_now, type_=Double)  # called when the statement is executed


def host_now() -> float:
    """Return this host's time in Unix seconds."""
    return time.time()
