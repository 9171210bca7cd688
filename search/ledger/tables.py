"""The ledger's tables, in SQLite or PostgreSQL.

Every write is one transaction with a number of its own, `seq`, which counts the events of a study and so records their
order.  The names have a prefix since a database on a server may hold the tables of other programs.
"""

import json
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

FORMAT = 2
"""Version of these tables; a study of another version is refused."""


class JsonText(TypeDecorator[Any]):
    """A JSON value stored as text: PostgreSQL's own type accepts no NaN, which a diverged epoch has."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Return the text of a value; None is stored as NULL."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Return the value of a text."""
        return None if value is None else json.loads(value)


TABLES = MetaData()

STUDIES = Table(
    "fgsearch_studies",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("uid", String(32), nullable=False),
    Column("format", Integer, nullable=False),
    Column("identity", JsonText),
    Column("metadata", JsonText, nullable=False),
    Column("seq", Integer, nullable=False),  # number of the latest write
    Column("lock_host", String(255)),
    Column("lock_pid", Integer),
    Column("lock_started", Double),
    Column("lock_token", String(32)),
    Column("lock_heartbeat", Double),
)

TRIALS = Table(
    "fgsearch_trials",
    TABLES,
    Column("study", ForeignKey(STUDIES.c.id), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("origin", String(32), nullable=False),  # what chose the point, see TrialRecord.origin
    Column("params", JsonText, nullable=False),
    Column("context", JsonText, nullable=False),  # what else the suggestion depends on, for search.audit --replay
    Column("repeat_seed", Integer),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("length", Integer, nullable=False),
    Column("overrides", JsonText, nullable=False),
    Column("value", Double),
    Column("selected", Integer),
    Column("reason", Text),
    Column("started", Double, nullable=False),
    Column("ended", Double),
    Column("test", JsonText),
    Column("seq", Integer, nullable=False),  # of the latest write to the trial
    Column("asked_seq", Integer, nullable=False),
    Column("ended_seq", Integer),
)


def trial_key() -> tuple[Column[Any], Column[Any]]:
    """Return the columns of a trial's key for a table of its own."""
    return Column("study", ForeignKey(STUDIES.c.id), primary_key=True), Column("number", Integer, primary_key=True)


EPOCHS = Table(
    "fgsearch_epochs",
    TABLES,
    *trial_key(),
    Column("epoch", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("result", JsonText, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("stop", Boolean),  # the pruner's decision after this epoch; NULL: none
    Column("stop_seq", Integer),
)

FAILURES = Table(
    "fgsearch_failures",
    TABLES,
    *trial_key(),
    Column("attempt", Integer, primary_key=True),
    Column("reason", Text, nullable=False),
)
