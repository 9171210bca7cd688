"""Write to a study in one transaction that fails if another driver has the study or the trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Table, and_, insert, select, update

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import SupersededError
from search.ledger.lock import StudyLock
from search.ledger.records import State, TrialRecord
from search.ledger.tables import FAILURES, STUDIES, TRIALS


@dataclass(frozen=True)
class Transaction:
    """One write to a study; nothing of it is stored if an error ends it."""

    connection: Connection
    study: int
    """Id of the study."""
    seq: int
    """Number of this write; every row that it adds or changes has it."""
    changed: dict[int, TrialRecord] = field(default_factory=dict)
    """The trials as they are after this write, by number."""

    def change_trial(self, record: TrialRecord, **fields: Any) -> None:
        """Change fields of an open trial.

        Args:
            record: the trial as last read.
            fields: values of `TrialRecord`; none if only the trial's epochs or failures change.

        Raises:
            SupersededError: the trial has ended, or has another attempt.
        """
        row = (TRIALS.c.study == self.study, TRIALS.c.number == record.number)
        current = (TRIALS.c.attempt == record.attempt, TRIALS.c.state == State.RUNNING.value)
        columns = {name: column_value(value) for name, value in fields.items() if name in TRIALS.c}
        changed = update(TRIALS).where(*row, *current).values(columns | {"seq": self.seq})
        if self.connection.execute(changed).rowcount != 1:
            raise SupersededError(f"trial {record.number}: another driver has ended or restarted it")
        self.changed[record.number] = replace(record, **fields, seq=self.seq)

    def add_trial(self, record: TrialRecord) -> None:
        """Add a trial."""
        names = [name for name in TRIALS.c.keys() if name not in ("study", "repeat_seed")]  # noqa: SIM118  not a dict
        columns = {name: column_value(getattr(record, name)) for name in names}
        self.insert(TRIALS, columns | {"repeat_seed": record.repeat})
        self.changed[record.number] = record

    def add_failure(self, number: int, attempt: int, reason: str) -> bool:
        """Record the death of an attempt's process; returns False if it is recorded already."""
        row = {"study": self.study, "number": number, "attempt": attempt}
        known = select(FAILURES.c.attempt).where(*(FAILURES.c[name] == value for name, value in row.items()))
        if self.connection.execute(known).first() is not None:
            return False
        self.connection.execute(insert(FAILURES).values(row | {"reason": reason}))
        return True

    def insert(self, table: Table, values: Mapping[str, Any]) -> None:
        """Add a row to a table of the study."""
        self.connection.execute(insert(table).values(study=self.study, **values))

    def update(self, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Change the row of a table of the study with this key."""
        row = and_(table.c.study == self.study, *(table.c[name] == value for name, value in key.items()))
        self.connection.execute(update(table).where(row).values(**values))

    def study_row(self) -> RowMapping:
        """Return identity and metadata of the study."""
        query = select(STUDIES.c.identity, STUDIES.c.metadata).where(STUDIES.c.id == self.study)
        return self.connection.execute(query).one()._mapping

    def change_study(self, values: Mapping[str, Any]) -> None:
        """Change the study's own row."""
        self.connection.execute(update(STUDIES).where(STUDIES.c.id == self.study).values(**values))


@contextmanager
def transaction(engine: Engine, study: int, lock: StudyLock | None) -> Iterator[Transaction]:
    """Begin a write, which is stored at the end of the block.

    Its first statement counts the write and names the lock's token: it changes no row if another driver has taken the
    lock, and until the transaction ends no other write to the study begins.

    Raises:
        SupersededError: another driver has taken the lock, or has deleted the study.
    """
    owned = STUDIES.c.id == study
    if lock is not None:
        owned &= lock.is_ours()
    count = update(STUDIES).where(owned).values(seq=STUDIES.c.seq + 1).returning(STUDIES.c.seq)
    with engine.begin() as connection:
        seq = connection.execute(count).scalar_one_or_none()
        if seq is None:
            if lock is not None:
                lock.mark_lost()
            raise SupersededError("the study was deleted")
        yield Transaction(connection, study, seq)


def column_value(value: Any) -> Any:
    """Convert a field of `TrialRecord` to the value of its column."""
    if isinstance(value, TestResult):
        return value.to_json()
    return value.value if isinstance(value, StrEnum) else value
