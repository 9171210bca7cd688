"""A ledger of a small search, as a driver opens it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, FloatDistribution

from search.ledger.ledger import Ledger
from search.ledger.transaction import Transaction
from search.sampling.study_sampler import StudySampler
from search.study.config import SearchConfig
from search.study.objective import DEFAULT

SPACE = {"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(0.0, 1.0)}
START = {"a": 0.5, "b": 0.5}
EPOCHS = 4


def start_search(
    ledger: Ledger,
    space: Mapping[str, BaseDistribution],
    start: Mapping[str, float | int],
    *,
    epochs: int,
    select: str = "last",
    objectives: Sequence[str] = DEFAULT,
    **settings: Any,
) -> None:
    """Prepare a ledger for the trials of a search."""
    source = StudySampler(space, start, epochs=epochs, objectives=objectives, **settings)
    ledger.start(source, epochs=epochs, select=select, objectives=objectives)


def drive(folder: Path, sampler: str = "auto", pruner: str = "none", trials: int = 12, epochs: int = 1) -> Ledger:
    """A ledger as a fresh driver opens it."""
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s")
    sampler = SearchConfig(sampler=sampler, pruner=pruner).resolved_sampler
    start_search(ledger, SPACE, START, trials=trials, sampler=sampler, pruner=pruner, epochs=epochs, seed=7)
    return ledger


def kill_before(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Let the driver die in the middle of a write, where it comes to a method of `Transaction`."""

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, call, killed)
