"""The audit: a right study is clean, and each invariant that is broken is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from kept_study import (
    IDENTITY,
    SETTINGS,
    SPACE,
    begin,
    change,
    epoch,
    finished_study,
    lines,
    rewrite_manifest,
    train,
)
from small_ledger import start_search

from search.audit.__main__ import main
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation, find_location
from search.tracking.sync import sync

pytestmark = pytest.mark.slow


def test_finished_study_that_was_moved_is_clean(location: StudyLocation):
    assert lines(location) == []
    assert lines(location, interrupted=True) == []
    assert lines(location, trials=3) == []


def test_trials_are_judged_by_the_settings_under_which_they_ended(tmp_path: Path):
    storage = tmp_path / "runs"
    location = finished_study(storage)
    ledger = open_ledger(location)
    longer = {**SETTINGS, "train.epochs": 4, "train.select": "best"}
    ledger.accept_changes({**IDENTITY, "settings": longer}, "settings.train.epochs: 3 there, 4 now", when=5.0)
    ledger.record_run(replace(ledger.metadata, settings=longer, budget=4))
    settings = {"trials": 4, "sampler": "random", "pruner": "none", "epochs": 4, "seed": 42, "select": "best"}
    start_search(ledger, SPACE, {"loss.ssim": 0.4}, **settings)
    ledger.complete(train(ledger, Path(location.folder), epochs=4), 1)
    sync(location)
    assert lines(location) == []
    assert [ledger.metadata.settings_at(number)["train.epochs"] for number in range(4)] == [3, 3, 3, 4]


def test_attempts_never_go_back_from_one_epoch_to_the_next(location: StudyLocation):
    database = Path(location.folder) / "study.db"
    change(database, "UPDATE fgsearch_trials SET attempt = 2 WHERE number = 0")
    first = json.dumps(epoch(1, 0, attempt=2).to_json())
    change(database, "UPDATE fgsearch_epochs SET result = ? WHERE number = 0 AND epoch = 1", first)
    assert "trial 0: epoch 2 is of attempt 1, must be one of 2 to 2" in lines(location)


def test_more_trials_than_the_budget_are_right_after_lowering_it_but_not_where_a_number_is_asked_for(
    location: StudyLocation,
):
    change(
        Path(location.folder) / "study.db", "UPDATE fgsearch_studies SET metadata = json_set(metadata, '$.budget', 2)"
    )
    assert lines(location) == []
    assert lines(location, trials=2) == ["3 trials have ended, the budget says 2"]


@pytest.mark.parametrize("name", ["study.db.tmp", "trials/0/model-1.0123.tmp"])
def test_leftover_temporary_file_is_named(location: StudyLocation, name: str):
    (Path(location.folder) / name).touch()
    assert lines(location) == [f"{name}: a temporary file was left behind"]
    assert lines(location, interrupted=True) == [f"{name}: a temporary file was left behind"]


def test_epoch_done_again_after_a_damaged_checkpoint_is_right(location: StudyLocation):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_trials SET attempt = 2 WHERE number = 0")
    change(Path(location.storage) / "mlflow.db", "UPDATE tags SET value = '2' WHERE key = 'fgseg.attempt'")
    history = [epoch(1, 0), epoch(2, 0), epoch(3, 0, attempt=2)]
    path = Path(location.folder) / "trials" / "0" / "checkpoint-000001-000003.json"
    rewrite_manifest(path, history=[e.to_json() for e in history])
    assert lines(location) == []


def test_best_trial_must_have_its_weights_and_others_need_none(location: StudyLocation):
    shutil.rmtree(Path(location.folder) / "trials" / "1")
    assert lines(location) == []
    shutil.rmtree(Path(location.folder) / "trials" / "0")
    assert lines(location) == ["trial 0: the best trial has no checkpoint"]


@pytest.fixture
def opened(original: Path, tmp_path: Path) -> StudyLocation:
    """A study whose driver was killed in the second of four trials."""
    (tmp_path / "runs").mkdir()
    shutil.copy(original / "mlflow.db", tmp_path / "runs" / "mlflow.db")
    ledger, folder = begin(tmp_path / "runs", "open", trials=4), tmp_path / "runs" / "open"
    ledger.complete(train(ledger, folder, epochs=3), 1)
    train(ledger, folder, epochs=1)
    return find_location(tmp_path / "runs", "open")


def test_interrupted_study_is_broken_unless_it_may_be(opened: StudyLocation):
    sync(opened)
    assert lines(opened) == [
        "interrupted: 1 open (trials 1), and no driver is alive",
        "1 trials have ended, the budget says 4",
    ]
    assert lines(opened, interrupted=True) == []


def test_half_written_file_of_an_open_trial_waits_for_its_next_start(opened: StudyLocation):
    sync(opened)
    (Path(opened.folder) / "trials" / "1" / "model.0123.tmp").touch()
    assert lines(opened, interrupted=True) == []
    assert "trials/1/model.0123.tmp: a temporary file was left behind" in lines(opened)


def test_study_at_work_is_looked_at_as_an_interrupted_one(opened: StudyLocation):
    with open_ledger(opened).lock():
        assert lines(opened) == []


def test_checkpoint_of_an_open_trial_may_be_one_epoch_ahead(opened: StudyLocation):
    path = Path(opened.folder) / "trials" / "1" / "checkpoint-000001-000001.json"
    rewrite_manifest(path, history=[epoch(k, trial=1).to_json() for k in (1, 2)])
    assert lines(opened, interrupted=True) == []


def run(location: StudyLocation, *arguments: str) -> int:
    return main(["--study", location.study, "--storage", location.storage, *arguments])


def test_command_tells_a_clean_study_from_a_broken_one(location: StudyLocation, capsys: pytest.CaptureFixture[str]):
    assert run(location) == 0
    assert capsys.readouterr().out == "study s: clean\n"
    assert run(location, "--trials", "5") == 1
    assert capsys.readouterr().out == "3 trials have ended, the budget says 5\nstudy s: 1 broken\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "t", "--storage", "{}"], "--study: no study t in {}; there are: s"),
        (
            ["--study", "../s", "--storage", "{}"],
            "--study: got '../s', must be at most 100 letters, digits, dots, dashes",
        ),
        (["--study", "s", "--storage", "{}/nowhere"], "--storage: no folder {}/nowhere; name the folder of studies"),
        (["--storage", "{}"], "the following arguments are required: --study"),
    ],
)
def test_mistake_is_told_in_one_line(
    location: StudyLocation, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main([text.format(location.storage) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(location.storage)}")
    assert error.count("\n") == 1


def test_ledger_that_is_no_database_is_broken(location: StudyLocation, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("fgseg.storage.retry.sleep", lambda pause_s: None)
    (Path(location.folder) / "study.db").write_text("not a database, but long enough to be looked at as one")
    assert run(location) == 1
    assert "file is not a database" in capsys.readouterr().out


def test_study_that_ended_with_its_hours_is_clean_with_an_open_trial(opened: StudyLocation):
    open_ledger(opened).record_limit("max_hours")
    sync(opened)
    assert lines(opened) == []
