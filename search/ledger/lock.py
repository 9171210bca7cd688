"""The study's lock: one row in the ledger's database, kept alive by a heartbeat, so that one driver runs a study.

A holder whose process can be seen from here is judged by it, any other by its heartbeat.  A database server tells the
time of every heartbeat by its own clock; hosts that share an SQLite file must agree on it to well within `TAKEOVER_S`.
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
"""Time between two heartbeats."""
TAKEOVER_S = 60.0
"""Age of the heartbeat from which a holder on another host counts as dead."""
START_TOLERANCE_S = 5.0
"""Start times of one process may differ by this much: the system derives them from a clock that is adjusted."""

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
    """Another driver holds the study: one line naming host, process and age of the heartbeat."""


@dataclass(frozen=True)
class LockHolder:
    """Who holds a study."""

    host: str
    """Where its process can be seen: see `surroundings`."""
    pid: int
    started: float
    """When its process began, unix seconds; tells it from a later process of the same number."""
    token: str
    """Unique to one taking of the lock."""
    heartbeat: float
    """Its last sign of life, unix seconds."""
    age_s: float
    """Seconds since then, when it was read."""

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.partition("/")[0]

    def is_alive(self) -> bool:
        """Whether the lock must be respected."""
        if self.host != host_id():
            return self.age_s <= TAKEOVER_S
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class StudyLock:
    """Holds a study while it is entered as a context; raises LockedError on entering if someone else does."""

    def __init__(self, url: str, study: str) -> None:
        self._engine = open_engine(url)
        self._study = study
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = threading.Event()
        self._renewed = float("-inf")
        self._thread = threading.Thread(target=self._send_heartbeats, name="study-lock", daemon=True)

    def is_held(self) -> bool:
        """False once another driver took over, or no heartbeat could be written for `TAKEOVER_S`: stop then."""
        ended = self._lost.is_set() or self._released.is_set()
        return not ended and uptime() - self._renewed < TAKEOVER_S

    def verify(self, connection: Connection) -> None:
        """Ask the database whether the lock is still ours, and let nobody take it before the transaction ends.

        With SQLite that holds from the transaction's first write on.

        Raises:
            SupersededError: another driver has taken the study over, while this process slept perhaps.
        """
        row = select(LOCKS.c.token).where(self.row_filter()).with_for_update(read=True)
        if connection.execute(row).one_or_none() is None:
            self.mark_lost()

    def row_filter(self) -> ColumnElement[bool]:
        """What is true of the lock's row in `LOCKS` for as long as it is ours."""
        return (LOCKS.c.study == self._study) & (LOCKS.c.token == self._token)

    def mark_lost(self) -> NoReturn:
        """Take note that it no longer is; raises SupersededError."""
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
        # Neither succeeds only if somebody let go of the lock, or took it, between the two: look again.
        while not (self._insert() or self._take_over()):
            log.debug("study %s: its lock changed hands", self._study)

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
        """Make the row ours if it has this token and no later heartbeat; one statement, so that only one driver can."""
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
    """The live holder of a study, or None; creates nothing."""
    if not has_database(url):
        return None
    engine = open_engine(url)
    holder = read_row(engine, study) if inspect(engine).has_table(LOCKS.name) else None
    engine.dispose()
    return holder if holder and holder.is_alive() else None


def read_row(engine: Engine, study: str) -> LockHolder | None:
    """The row of a study, its holder dead or alive, or None."""
    columns = [column for column in LOCKS.c if column.name != "study"]
    age = (database_now(engine) - LOCKS.c.heartbeat).label("age_s")
    with engine.connect() as connection:
        row = connection.execute(select(*columns, age).where(LOCKS.c.study == study)).one_or_none()
    return LockHolder(**row._mapping) if row else None


def host_id() -> str:
    """Where a process number says which process is meant: the host's name and, on Linux, its boot and namespace.

    Two containers may have one host's name, and neither sees the other's processes.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}/{namespace.readlink()}"
    except OSError:
        return socket.gethostname()


def uptime() -> float:
    """Seconds since some moment, those included in which the machine slept, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def database_now(engine: Engine) -> ColumnElement[float]:
    """Now, unix seconds, as a database sees it: by the clock of its server, where it has one."""
    if engine.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return literal(time.time(), Double)
