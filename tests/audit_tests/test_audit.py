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
    named,
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


LEDGER_FAULTS = {
    "trial 0: its epochs are [1, 3], must be 1 to 2, each once": (
        "DELETE FROM fgsearch_epochs WHERE number = 0 AND epoch = 2"
    ),
    "trial 0: COMPLETE with 2 of 3 epochs": "DELETE FROM fgsearch_epochs WHERE number = 0 AND epoch = 3",
    "trial 0: its value is 0.9, that of epoch 3 is 0.3": "UPDATE fgsearch_trials SET value = 0.9 WHERE number = 0",
    "trial 1: COMPLETE with 1 of 3 epochs": "UPDATE fgsearch_trials SET state = 'complete' WHERE number = 1",
    "trial 1: PRUNED without a reason": "UPDATE fgsearch_trials SET reason = NULL WHERE number = 1",
    "trial 2: FAIL without a reason": "UPDATE fgsearch_trials SET reason = NULL WHERE number = 2",
    "trial 2: epoch 2 is of attempt 7, must be one of 1 to 1": (
        "UPDATE fgsearch_epochs SET result = json_set(result, '$.attempt', 7) WHERE number = 2 AND epoch = 2"
    ),
    "trial 2: ended as FAIL without ever being started": "UPDATE fgsearch_trials SET attempt = 0 WHERE number = 2",
    "the trial numbers are [0, 1, 7], must be 0 to 2, each once": (
        "UPDATE fgsearch_trials SET number = 7 WHERE number = 2"
    ),
    "3 trials have ended, the budget says 9": (
        "UPDATE fgsearch_studies SET metadata = json_set(metadata, '$.budget', 9)"
    ),
    "interrupted: 1 open (trials 2), and no driver is alive": (
        "UPDATE fgsearch_trials SET state = 'running', ended = NULL WHERE number = 2"
    ),
}


@pytest.mark.parametrize("line", LEDGER_FAULTS)
def test_what_is_wrong_in_the_ledger_is_named(location: StudyLocation, line: str):
    change(Path(location.folder) / "study.db", LEDGER_FAULTS[line])
    assert named(line, lines(location))


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


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("blob", ["model-000001-000003.safetensors", "state-000001-000003.pt"])
def test_checkpoint_that_cannot_be_loaded_is_named(location: StudyLocation, damage: str, blob: str):
    path = Path(location.folder) / "trials" / "0" / blob
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    first, _ = lines(location)
    assert first.startswith("trial 0: checkpoint-000001-000003.json cannot be loaded: ")
    assert blob in first


def test_manifest_that_is_no_json_is_named(location: StudyLocation):
    (Path(location.folder) / "trials" / "2" / "checkpoint-000001-000002.json").write_text("{")
    (line,) = lines(location)
    assert line.startswith("trial 2: checkpoint-000001-000002.json cannot be loaded: ")


def test_checkpoint_that_tells_other_epochs_than_the_ledger_is_named(location: StudyLocation):
    history = [epoch(k, trial=0).to_json() | {"miou": 0.7} for k in (1, 2, 3)]
    rewrite_manifest(Path(location.folder) / "trials" / "0" / "checkpoint-000001-000003.json", history=history)
    assert "trial 0: checkpoint-000001-000003.json holds another epoch 2 than the ledger" in lines(location)


def test_epoch_done_again_after_a_damaged_checkpoint_is_right(location: StudyLocation):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_trials SET attempt = 2 WHERE number = 0")
    change(Path(location.storage) / "mlflow.db", "UPDATE tags SET value = '2' WHERE key = 'fgseg.attempt'")
    history = [epoch(1, 0), epoch(2, 0), epoch(3, 0, attempt=2)]
    path = Path(location.folder) / "trials" / "0" / "checkpoint-000001-000003.json"
    rewrite_manifest(path, history=[e.to_json() for e in history])
    assert lines(location) == []


def test_epoch_that_only_the_checkpoint_of_an_ended_trial_holds_is_named(location: StudyLocation):
    path = Path(location.folder) / "trials" / "1" / "checkpoint-000001-000001.json"
    rewrite_manifest(path, history=[epoch(k, trial=1).to_json() for k in (1, 2)])
    assert lines(location) == ["trial 1: checkpoint-000001-000001.json holds an epoch that the ledger lacks"]


def test_best_trial_must_have_its_weights_and_others_need_none(location: StudyLocation):
    shutil.rmtree(Path(location.folder) / "trials" / "1")
    assert lines(location) == []
    shutil.rmtree(Path(location.folder) / "trials" / "0")
    assert lines(location) == ["trial 0: the best trial has no checkpoint"]


def test_weights_of_the_epoch_that_stands_for_a_trial_must_be_there(location: StudyLocation):
    (Path(location.folder) / "trials" / "0" / "checkpoint-000001-000003.json").unlink()
    assert lines(location) == ["trial 0: no checkpoint is of its selected epoch 3"]


def test_folder_of_a_trial_that_was_never_asked_is_named(location: StudyLocation):
    (Path(location.folder) / "trials" / "8").mkdir()
    assert lines(location) == ["trials/8: belongs to no trial of the ledger"]


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
        (["--study", "../s", "--storage", "{}"], "--study: got '../s', must be letters, digits, dots, dashes"),
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
