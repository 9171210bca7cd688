"""A study as every process may read it: its description, its trials, and who drives it."""

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, bindparam, select

from fgseg.results import SupersededError
from search.ledger.database import open_engine, retry, study_id
from search.ledger.lock import STUDY, LockHolder, StudyLock, read_holder
from search.ledger.records import TrialRecord, count_ended, read_record
from search.ledger.study_metadata import Confirmation, Constraint, StudyMetadata
from search.ledger.tables import EPOCHS, FAILURES, STUDIES, TRIALS

# Statements are built once, see transaction.py.
READ_STUDY = select(STUDIES).where(STUDY)
CHANGED = (TRIALS.c.study == bindparam("of_study"), TRIALS.c.seq > bindparam("since"))
CHANGED_TRIALS = select(TRIALS).where(*CHANGED).order_by(TRIALS.c.number)
NUMBERS = select(TRIALS.c.number).where(*CHANGED)
THEIR_EPOCHS = (
    select(EPOCHS).where(EPOCHS.c.study == bindparam("of_study"), EPOCHS.c.number.in_(NUMBERS)).order_by(EPOCHS.c.epoch)
)
THEIR_FAILURES = select(FAILURES.c.number).where(
    FAILURES.c.study == bindparam("of_study"), FAILURES.c.number.in_(NUMBERS)
)


class StudyReader:
    """An existing study, to read; may be called from several threads, also while the driver writes.

    A call reads from the database the trials that were written to since the last call.  While this process holds the
    study's lock nobody else writes, and calls are answered from memory.

    Args:
        url: SQLAlchemy address, such as sqlite:////abs/path/study.db.
        study: name of the study.

    Raises:
        LookupError: the study does not exist.
        LedgerError: it was written by another version of fgsearch.
    """

    def __init__(self, url: str, study: str) -> None:
        found = study_id(url, study)
        if found is None:
            raise LookupError(f"no study {study} in this storage")
        self._study = found
        self._name = study
        self._engine = open_engine(url)
        self._lock: StudyLock | None = None
        self._reading = threading.Lock()
        self._records: dict[int, TrialRecord] = {}
        self._metadata = StudyMetadata()
        self._seq = -1
        self._is_fresh = False

    def holder(self) -> LockHolder | None:
        """Return the live driver that holds the study's lock; None if there is none."""
        return read_holder(self._engine, self._study)

    def close(self) -> None:
        """Close the connections to the database; the next call opens a new one."""
        self._engine.dispose()

    @property
    def is_locked(self) -> bool:
        """Return whether this process holds the study's lock."""
        return self._lock is not None and self._lock.is_held()

    def check_lock(self) -> None:
        """Raise SupersededError unless this process holds the study's lock."""
        if not self.is_locked:
            raise SupersededError(
                "another driver has taken it over, or this one was suspended; run the same command again"
            )

    @property
    def metadata(self) -> StudyMetadata:
        """Description of the study; empty until a driver has recorded it."""
        self._refresh()
        return self._metadata

    def open_trials(self) -> list[int]:
        """Return the numbers of the trials that have not ended, ascending."""
        return [record.number for record in self.trials() if record.is_open]

    def trial(self, number: int) -> TrialRecord:
        """Return the record of a trial; raises KeyError if it does not exist."""
        self._refresh()
        return self._records[number]

    def trials(self) -> list[TrialRecord]:
        """Return the records of all trials, by number."""
        self._refresh()
        return list(self._records.values())

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        """Return the confirmed trial or else the first one of `rank_trials`; None if no trial is COMPLETE.

        Trials with overrides are excluded unless the study's metadata have `allow_changed_batch`.

        Args:
            among: the study's trials if already read; by default they are read.
        """
        metadata = self.metadata
        records = self.trials() if among is None else among
        return confirmed(records, metadata) or next(iter(metadata.rank(records)), None)

    @retry
    def _refresh(self) -> None:
        """Read what was written since the last read; see `read_trials` for writes meanwhile."""
        with self._reading:
            if self._is_fresh and self.is_locked:
                return
            locked = self.is_locked  # before the read: another driver may take the lock meanwhile
            with self._engine.connect() as connection:
                row = connection.execute(READ_STUDY, {"of_study": self._study}).mappings().one_or_none()
                if row is None:
                    self._records, self._metadata = {}, StudyMetadata()
                    return
                if row["seq"] != self._seq:
                    self._records |= read_trials(connection, self._study, since=self._seq)
                    self._metadata = read_metadata(row)
            self._seq, self._is_fresh = row["seq"], locked


def confirmed(records: Sequence[TrialRecord], metadata: StudyMetadata) -> TrialRecord | None:
    """Return the trial that --confirm has selected; None if it selected none, or if trials have ended since."""
    selected = metadata.confirmation
    if selected is None or selected.ended != count_ended(records):
        return None
    return next((record for record in records if record.number == selected.trial), None)


def read_metadata(row: RowMapping) -> StudyMetadata:
    """Convert a row of `STUDIES` to the description of the study."""
    constraint = Constraint(**row["metadata"].get("constraint", {}))
    selected = row["metadata"].get("confirmation")
    stored = {
        **row["metadata"],
        "constraint": constraint,
        "confirmation": None if selected is None else Confirmation(**selected),
    }
    return StudyMetadata(**stored, identity=row["identity"] or {}, uid=row["uid"] if row["identity"] else "")


def read_trials(connection: Connection, study: int, since: int) -> dict[int, TrialRecord]:
    """Read the trials of a study with a write after `since`; by number, ascending.

    Trials are read before their epochs: the driver may write meanwhile, and an ended trial gets no more epochs.
    """
    key = {"of_study": study, "since": since}
    trials = connection.execute(CHANGED_TRIALS, key).mappings().all()
    if not trials:
        return {}
    epochs: dict[int, list[RowMapping]] = defaultdict(list)
    for row in connection.execute(THEIR_EPOCHS, key).mappings():
        epochs[row["number"]].append(row)
    failures = Counter(connection.execute(THEIR_FAILURES, key).scalars())
    return {row["number"]: read_record(row, epochs[row["number"]], failures[row["number"]]) for row in trials}
