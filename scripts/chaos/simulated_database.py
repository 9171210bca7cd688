"""A ledger's database in memory, which keeps a history of all changes; it fails, and crashes come at its commits."""

import json
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable

from scripts.chaos.virtual_time import Clock, Killed
from search.ledger.tables import TABLES

TRANSACTION_S = 0.01
"""Virtual seconds until a transaction begins."""
HISTORY = """
CREATE TABLE history (what TEXT, number INTEGER, epoch INTEGER, before TEXT, after TEXT);
CREATE TRIGGER asked AFTER INSERT ON fgsearch_trials BEGIN
  INSERT INTO history VALUES ('asked', NEW.number, NULL, NULL, NEW.params); END;
CREATE TRIGGER moved AFTER UPDATE ON fgsearch_trials WHEN OLD.params IS NOT NEW.params BEGIN
  INSERT INTO history VALUES ('moved', NEW.number, NULL, OLD.params, NEW.params); END;
CREATE TRIGGER attempt AFTER UPDATE ON fgsearch_trials WHEN OLD.attempt IS NOT NEW.attempt BEGIN
  INSERT INTO history VALUES ('attempt', NEW.number, NULL, OLD.attempt, NEW.attempt); END;
CREATE TRIGGER after_end AFTER UPDATE ON fgsearch_trials WHEN OLD.state <> 'running' BEGIN
  INSERT INTO history VALUES ('after end', NEW.number, NULL, OLD.state, NEW.state); END;
CREATE TRIGGER epoch AFTER INSERT ON fgsearch_epochs BEGIN
  INSERT INTO history VALUES ('epoch', NEW.number, NEW.epoch, NULL, NEW.attempt); END;
CREATE TRIGGER rewritten AFTER UPDATE OF result, attempt, seq ON fgsearch_epochs BEGIN
  INSERT INTO history VALUES ('rewritten', NEW.number, NEW.epoch, OLD.result, NEW.result); END;
CREATE TRIGGER decided AFTER UPDATE ON fgsearch_epochs WHEN OLD.stop IS NOT NULL AND OLD.stop IS NOT NEW.stop BEGIN
  INSERT INTO history VALUES ('decided again', NEW.number, NEW.epoch, OLD.stop, NEW.stop); END;
CREATE TRIGGER lost_epoch AFTER DELETE ON fgsearch_epochs BEGIN
  INSERT INTO history VALUES ('deleted', OLD.number, OLD.epoch, NULL, NULL); END;
CREATE TRIGGER lost_trial AFTER DELETE ON fgsearch_trials BEGIN
  INSERT INTO history VALUES ('deleted', OLD.number, NULL, NULL, NULL); END;
"""
"""Triggers that record every change; a transaction that is rolled back leaves none."""


OF_STUDY = "study = (SELECT id FROM fgsearch_studies WHERE name = ?) AND number = ?"
"""Condition of the rows of one trial, by the name of its study and its number."""


class Change(NamedTuple):
    """One row of the history."""

    what: str
    number: int
    epoch: int | None
    before: Any
    after: Any


class Database(sqlite3.Connection):
    """The only connection; users get it in turn, since threads change only between transactions.

    Attributes:
        failing: whether half of the commits fail, before or after they are carried out.
    """

    clock: Clock
    random: Random
    failing: bool

    def begin_schedule(self, clock: Clock, random: Random) -> None:
        """Delete everything, and run under a clock from now on."""
        self.clock, self.random, self.failing = clock, random, False
        for table in (*reversed(TABLES.sorted_tables), "history"):
            self.execute(f"DELETE FROM {table}")
        super().commit()

    def commit(self) -> None:
        """Commit; the process may crash before or after, the answer may be lost."""
        crashes, fails = self.clock.process.crashes_now(), self.failing and self.random.random() < 0.5
        is_done = not (crashes or fails) or self.random.random() < 0.5
        if is_done:
            super().commit()
        if crashes:
            self.clock.process.kill()
            raise Killed
        if fails:
            raise sqlite3.OperationalError("disk I/O error")

    def close(self) -> None:
        """End the connection of a killed process: what was not committed is lost."""
        self.rollback()

    def history(self) -> list[Change]:
        """Return all changes in order."""
        return [Change(*row) for row in self.execute("SELECT * FROM history ORDER BY rowid")]

    def count(self, *states: str) -> int:
        """Return the number of trials in these states."""
        return sum(row[0] in states for row in self.execute("SELECT state FROM fgsearch_trials"))

    def state_of(self, study: str, number: int) -> str | None:
        """Return the state of a trial of a study as it is stored; None: there is no such trial."""
        row = self.execute(f"SELECT state FROM fgsearch_trials WHERE {OF_STUDY}", (study, number)).fetchone()
        return row and row[0]

    def miou_of(self, study: str, number: int, epoch: int) -> float | None:
        """Return the mIoU of an epoch as it is stored; None: there is no such epoch."""
        query = f"SELECT result FROM fgsearch_epochs WHERE {OF_STUDY} AND epoch = ?"
        row = self.execute(query, (study, number, epoch)).fetchone()
        return row and json.loads(row[0])["miou"]


@lru_cache(1)
def shared_database() -> tuple[Database, Engine]:
    """Return database and engine of all schedules of this process, for which each statement is compiled once."""
    database = sqlite3.connect(":memory:", factory=Database, check_same_thread=False)
    engine = create_engine("sqlite://", creator=lambda: database, poolclass=StaticPool)
    tables = [f"{CreateTable(table).compile(engine)};" for table in TABLES.sorted_tables]
    database.executescript("\n".join([*tables, HISTORY]))
    engine.connect = waiting(database, engine.connect)  # type: ignore[method-assign]
    engine.dispose = lambda close=True: None  # type: ignore[method-assign]
    return database, engine


def waiting(database: Database, connect: Callable[[], Any]) -> Callable[[], Any]:
    """Return `connect` after a pause, in which other threads may write."""

    def connect_later() -> Any:
        clock, process = database.clock, database.clock.process
        if process.stall_s:
            process.frozen_until, process.stall_s = clock.now + process.stall_s, 0.0
        clock.sleep(TRANSACTION_S)
        return connect()

    return connect_later
