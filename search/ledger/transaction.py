"""Write to a study in one transaction that fails if another driver has the study or the trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, bindparam, insert, select, update

from fgseg.checkpoints.test_results import TestResult
from fgseg.results import EpochResult, SupersededError
from search.ledger.lock import OURS, STUDY, StudyLock
from search.ledger.records import State, TrialRecord
from search.ledger.tables import EPOCHS, FAILURES, STUDIES, TRIALS

# Statements are built once: building one takes longer than its execution, and SQLAlchemy compiles each only once.
# Parameters of a condition begin with `of_`; those with the name of a column are its new value.
COUNT_WRITE = update(STUDIES).where(STUDY).values(seq=STUDIES.c.seq + 1).returning(STUDIES.c.seq)
COUNT_OWN_WRITE = COUNT_WRITE.where(OURS)
READ_STUDY = select(STUDIES.c.identity, STUDIES.c.metadata).where(STUDY)
CHANGE_STUDY = update(STUDIES).where(STUDY)
CHANGE_TRIAL = update(TRIALS).where(
    TRIALS.c.study == bindparam("of_study"),
    TRIALS.c.number == bindparam("of_number"),
    TRIALS.c.attempt == bindparam("of_attempt"),
    TRIALS.c.state == State.RUNNING.value,
)
CHANGE_EPOCH = update(EPOCHS).where(
    EPOCHS.c.study == bindparam("of_study"),
    EPOCHS.c.number == bindparam("of_number"),
    EPOCHS.c.epoch == bindparam("of_epoch"),
)
FIND_FAILURE = select(FAILURES.c.attempt).where(
    FAILURES.c.study == bindparam("of_study"),
    FAILURES.c.number == bindparam("of_number"),
    FAILURES.c.attempt == bindparam("of_attempt"),
)
ADD_TRIAL, ADD_EPOCH, ADD_FAILURE = insert(TRIALS), insert(EPOCHS), insert(FAILURES)


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
        key = {"of_study": self.study, "of_number": record.number, "of_attempt": record.attempt}
        columns = {name: column_value(value) for name, value in fields.items() if name in TRIALS.c}
        if self.connection.execute(CHANGE_TRIAL, key | columns | {"seq": self.seq}).rowcount != 1:
            raise SupersededError(f"trial {record.number}: another driver has ended or restarted it")
        self.changed[record.number] = replace(record, **fields, seq=self.seq)

    def add_trial(self, record: TrialRecord) -> None:
        """Add a trial."""
        names = [name for name in TRIALS.c.keys() if name not in ("study", "repeat_seed")]  # noqa: SIM118  not a dict
        columns = {name: column_value(getattr(record, name)) for name in names}
        self.connection.execute(ADD_TRIAL, columns | {"study": self.study, "repeat_seed": record.repeat})
        self.changed[record.number] = record

    def add_failure(self, number: int, attempt: int, reason: str) -> bool:
        """Record the death of an attempt's process; returns False if it is recorded already."""
        key = {"of_study": self.study, "of_number": number, "of_attempt": attempt}
        if self.connection.execute(FIND_FAILURE, key).first() is not None:
            return False
        row = {"study": self.study, "number": number, "attempt": attempt, "reason": reason}
        self.connection.execute(ADD_FAILURE, row)
        return True

    def add_epoch(self, number: int, attempt: int, epoch: EpochResult) -> None:
        """Add an epoch of a trial."""
        row = {"study": self.study, "number": number, "attempt": attempt, "seq": self.seq}
        self.connection.execute(ADD_EPOCH, row | {"epoch": epoch.epoch, "result": epoch.to_json()})

    def add_decision(self, number: int, epoch: int, stop: bool) -> None:
        """Record the pruner's decision after an epoch."""
        key = {"of_study": self.study, "of_number": number, "of_epoch": epoch}
        self.connection.execute(CHANGE_EPOCH, key | {"stop": stop, "stop_seq": self.seq})

    def study_row(self) -> RowMapping:
        """Return identity and metadata of the study."""
        return self.connection.execute(READ_STUDY, {"of_study": self.study}).one()._mapping

    def change_study(self, values: Mapping[str, Any]) -> None:
        """Change the study's own row."""
        self.connection.execute(CHANGE_STUDY, {"of_study": self.study, **values})


@contextmanager
def transaction(engine: Engine, study: int, lock: StudyLock | None) -> Iterator[Transaction]:
    """Begin a write, which is stored at the end of the block.

    Its first statement counts the write and names the lock's token: it changes no row if another driver has taken the
    lock, and until the transaction ends no other write to the study begins.

    Raises:
        SupersededError: another driver has taken the lock, or has deleted the study.
    """
    count, key = (COUNT_WRITE, {}) if lock is None else (COUNT_OWN_WRITE, lock.key)
    with engine.begin() as connection:
        seq = connection.execute(count, {"of_study": study, **key}).scalar_one_or_none()
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
