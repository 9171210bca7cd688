"""The file for optuna-dashboard, which can be written again at any time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from builders import make_trial
from fake_ledger import METADATA, FakeLedger
from kept_study import finished_study
from sqlalchemy import Engine, event

from fgseg.visual.overlays import overlay_name
from search.study.location import StudyLocation, find_location
from search.tracking import optuna_studies
from search.tracking.client import create_database
from search.tracking.optuna_studies import ARTIFACTS, DATABASE, OptunaStudyWriter, forget_study, open_study


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


def test_note_of_a_trial_is_written_without_reading_those_of_the_others(tmp_path: Path):
    statements: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        statements.append(" ".join(statement.split()))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        finished_study(tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    reads = [text for text in statements if "FROM study_system_attributes" in text]
    assert reads and not [text for text in reads if 'study_system_attributes."key" = ?' not in text]


def test_trial_is_shown_with_its_point_and_epochs_even_where_it_lies_outside_of_the_present_range(tmp_path: Path):
    ranges = {"loss.ssim": {"low": 0.1, "high": 0.5, "start": 0.2}}
    metadata = replace(METADATA, identity={"space": {"search": ranges}})
    ledger = FakeLedger(make_trial(0), make_trial(1))
    OptunaStudyWriter(ledger, StudyLocation(str(tmp_path), "s", ""), metadata).write_all("finished")
    inside, outside = open_study(tmp_path, "s").get_trials()
    assert (inside.params, outside.params) == ({"loss.ssim": 0.25}, {"loss.ssim": 1.25})
    assert inside.intermediate_values == {epoch.epoch: epoch.miou for epoch in ledger.trial(0).epochs}
    assert [trial.value for trial in (inside, outside)] == [trial.value for trial in ledger.trials()]


def test_deleted_study_leaves_no_overlay(tmp_path: Path):
    for name in ("s", "other"):
        (tmp_path / name / "trials" / "0").mkdir(parents=True)
        (tmp_path / name / "trials" / "0" / overlay_name(1, "frame")).write_bytes(b"a picture")
        finished_study(tmp_path, name)
    assert len(list((tmp_path / ARTIFACTS).iterdir())) == 2
    forget_study(find_location(tmp_path, "s"))
    (picture,) = (tmp_path / ARTIFACTS).iterdir()
    forget_study(find_location(tmp_path, "s"))
    picture.unlink()
    forget_study(find_location(tmp_path, "other"))
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / DATABASE}") == []
