"""Each invariant of scripts.chaos is violated by a study with one wrong change."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from builders import make_history, make_trial
from mlflow.entities import Metric

from scripts.chaos import ledger_checks
from scripts.chaos.invariants import check_history, check_run
from scripts.chaos.ledger_checks import LedgerChecks
from scripts.chaos.simulated_database import Database
from scripts.chaos.simulated_study import Study

TRIALS, EPOCHS = "fgsearch_trials", "fgsearch_epochs"


@pytest.fixture(scope="module")
def ended() -> Study:
    """A study that has ended without faults and violations: three trials of three epochs."""
    study = Study(2)
    assert study.run([]) == []
    return study


@pytest.fixture
def database(ended: Study) -> Iterator[Database]:
    """The database of the ended study; changes are rolled back."""
    yield ended.database
    ended.database.rollback()


def copy_row(database: Database, table: str, **changes: int) -> None:
    """Insert the first row of a table again with other values."""
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    values = [str(changes.get(column, column)) for column in columns]
    database.execute(f"INSERT INTO {table} SELECT {', '.join(values)} FROM {table} ORDER BY number LIMIT 1")


def change_twice(database: Database, table: str, column: str) -> None:
    """Set a column of the first trial to 0, then to 1."""
    for value in (0, 1):
        database.execute(f"UPDATE {table} SET {column} = {value} WHERE number = 0")


@pytest.mark.parametrize(
    ("change", "line"),
    (
        (lambda db: copy_row(db, TRIALS, number=4), "trial 4 was added after 3 trials"),
        (lambda db: copy_row(db, TRIALS, number=3), "trial 3 exceeds the budget of 3"),
        (lambda db: change_twice(db, TRIALS, "params"), "trial 0, epoch None: moved, 0 to 1"),
        (lambda db: change_twice(db, TRIALS, "attempt"), "trial 0: attempt 0 came after 1"),
        (lambda db: change_twice(db, TRIALS, "value"), "trial 0, epoch None: after end, complete to complete"),
        (lambda db: copy_row(db, EPOCHS, epoch=4, attempt=2), "trial 0: epoch 4 of attempt 2 was accepted in 1"),
        (lambda db: copy_row(db, EPOCHS, epoch=5), "trial 0: epoch 5 came after 3"),
        (lambda db: change_twice(db, EPOCHS, "result"), "trial 0, epoch 1: rewritten, 0 to 1"),
        (lambda db: change_twice(db, EPOCHS, "attempt"), "trial 0, epoch 1: rewritten"),
        (lambda db: change_twice(db, EPOCHS, "seq"), "trial 0, epoch 1: rewritten"),
        (lambda db: change_twice(db, EPOCHS, "stop"), "trial 0, epoch 1: decided again, 0 to 1"),
        (lambda db: db.execute(f"DELETE FROM {EPOCHS} WHERE epoch = 3"), "trial 0, epoch 3: deleted, None to None"),
        (lambda db: db.execute(f"DELETE FROM {TRIALS}"), "trial 0, epoch None: deleted, None to None"),
    ),
)
def test_wrong_change_of_the_ledger_is_a_violation(database: Database, change: Callable[[Database], Any], line: str):
    assert list(check_history(database.history(), budget=3)) == []
    change(database)
    assert line in "; ".join(check_history(database.history(), budget=3))


@pytest.mark.parametrize(
    ("change", "line"),
    (
        (lambda run: setattr(run.info, "status", "FAILED"), "trial 0: MLflow says FAILED, the ledger complete"),
        (lambda run: run.data.tags.update({"fgseg.trial": "3"}), "trial 3: MLflow says FINISHED, the ledger None"),
        (lambda run: run.data.tags.update({"fgseg.pruned": ""}), "trial 0: MLflow says that it was pruned, the ledger"),
        (lambda run: run.images.append(run.images[0]), "trial 0: MLflow shows an image twice"),
        (lambda run: run.history["val/miou"].append(Metric("val/miou", 0.5, 0, 4)), "0.5 in epoch 4, the ledger None"),
        (
            lambda run: run.history.update({"val/miou": [Metric("val/miou", 0.5, 0, 1)]}),
            "MLflow has mIoU 0.5 in epoch 1",
        ),
    ),
)
def test_run_of_mlflow_that_is_ahead_of_the_ledger_is_a_violation(
    ended: Study, change: Callable[[Any], Any], line: str
):
    run = next(run for run in ended.mlflow.runs.values() if run.data.tags.get("fgseg.trial") == "0")
    assert list(check_run(run, ended.database)) == []
    changed = deepcopy(run)
    changed.history = changed.data.metrics
    change(changed)
    assert line in "; ".join(check_run(changed, ended.database))


def test_best_trial_that_the_ledger_does_not_know_as_complete_is_a_violation(ended: Study):
    parent = next(run for run in ended.mlflow.runs.values() if run.data.tags["fgseg.kind"] == "study")
    assert list(check_run(parent, ended.database)) == []
    changed = deepcopy(parent)
    changed.data.tags["fgseg.best_trial"] = "3"
    assert list(check_run(changed, ended.database)) == ["trial 3: MLflow says that it is the best, the ledger None"]


def test_mlflow_is_checked_after_every_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Database, "miou_of", lambda database, study, number, epoch: None)
    assert any("in epoch 1, the ledger None" in line for line in Study(2).run([]))


def overwrite(study: Study, name: str) -> None:
    """Flip the last byte of the file whose path contains a name."""
    path = next(path for path in sorted(study.disk.files) if name in path)
    content = study.disk.files[path]
    study.disk.write(path, content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "line"),
    (
        (lambda study: overwrite(study, "model/model.safetensors"), "the exported weights are not those of the best"),
        (lambda study: study.disk.write("/simulated/small/model/origin.json", b"{}"), "the exported model is {}"),
        (lambda study: overwrite(study, "model-000001-000003"), "model-000001-000003.safetensors was altered"),
        (lambda study: study.mlflow.runs.popitem(), "0 runs in MLflow instead of one"),
    ),
)
def test_damage_at_the_end_of_a_study_is_a_violation(damage: Callable[[Study], Any], line: str):
    study = Study(2)
    check = study.check

    def damage_and_check() -> None:
        damage(study)
        check()

    study.check = damage_and_check  # type: ignore[method-assign]
    assert line in "; ".join(study.run([]))


def test_saved_epoch_that_is_trained_again_or_missing_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(ledger_checks, "audit", lambda *arguments, **options: ["a line of the audit"])
    checks, before = LedgerChecks(tmp_path, ""), make_trial(done=3)
    monkeypatch.setattr(checks, "records", lambda: [before])
    assert checks.check(1) == ["a line of the audit"]
    again = make_trial(epochs=[*before.epochs[:2], *make_history(0.5, 0.5, 0.5, wall_time=7.0)[2:]])
    monkeypatch.setattr(checks, "records", lambda: [again])
    assert checks.check(1) == ["a line of the audit", "trial 0: epoch 3 was trained again"]
    monkeypatch.setattr(checks, "records", lambda: [make_trial(epochs=before.epochs[:2])])
    assert checks.check(1) == ["a line of the audit", "trial 0: epoch 3 is missing"]
