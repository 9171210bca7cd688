"""The file for optuna-dashboard, which can be written again at any time."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from search.tracking import optuna_studies
from search.tracking.client import create_database
from search.tracking.optuna_studies import DATABASE, open_study


def kill_at_an_index(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
    """Let the process die where Optuna has created a table and not yet its index."""
    if statement.lstrip().startswith("CREATE UNIQUE INDEX"):
        raise KeyboardInterrupt


def test_creation_that_was_killed_leaves_no_file_and_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optuna_studies, "create_database", create_database)  # tests copy the database otherwise
    event.listen(Engine, "before_cursor_execute", kill_at_an_index)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_study(tmp_path, "s")
    finally:
        event.remove(Engine, "before_cursor_execute", kill_at_an_index)
    assert not (tmp_path / DATABASE).exists()
    assert open_study(tmp_path, "s").get_trials() == []
    assert {path.name for path in tmp_path.iterdir()} == {DATABASE, f".{DATABASE}.lock"}
