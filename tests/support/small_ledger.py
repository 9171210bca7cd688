"""A ledger of a small search, as a driver opens it."""

from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from sqlalchemy import Connection, Table

from search.ledger import storage
from search.ledger.ledger import Ledger
from search.study.config import SearchConfig

SPACE = {"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(0.0, 1.0)}
START = {"a": 0.5, "b": 0.5}
EPOCHS = 4


def drive(folder: Path, sampler: str = "auto", pruner: str = "none", trials: int = 12, epochs: int = 1) -> Ledger:
    """A ledger as a fresh driver opens it."""
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s")
    sampler = SearchConfig(sampler=sampler, pruner=pruner).resolved_sampler
    ledger.start(SPACE, START, trials=trials, sampler=sampler, pruner=pruner, epochs=epochs, seed=7, select="last")
    return ledger


def kill_before(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Let the driver die in the middle of an entry, where it comes to a table."""
    write = storage.upsert

    def killed(connection: Connection, to: Table, rows: list[dict[str, object]]) -> None:
        if to.name == table:
            raise KeyboardInterrupt
        write(connection, to, rows)

    monkeypatch.setattr(storage, "upsert", killed)
