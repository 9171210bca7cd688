"""The audit of MLflow: what differs from the ledger is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_untrained
from kept_study import change, lines

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.storage.store import LocalStore
from search.delete import delete
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation
from search.tracking.run_reader import read_runs
from search.tracking.sync import rebuild, sync

pytestmark = pytest.mark.slow

OF_TRIAL = "(SELECT run_uuid FROM tags WHERE key = 'fgseg.trial' AND value = '0')"


def test_after_an_interruption_mlflow_may_lag_behind_but_holds_nothing_wrong(location: StudyLocation):
    database = Path(location.storage) / "mlflow.db"
    change(database, f"DELETE FROM metrics WHERE step = 3 AND run_uuid IN {OF_TRIAL}")
    change(database, f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid IN {OF_TRIAL}")
    assert lines(location, interrupted=True) == []
    change(database, f"UPDATE metrics SET value = 0.5 WHERE step = 1 AND run_uuid IN {OF_TRIAL}")
    assert any("epoch 1 in MLflow differs from the ledger" in line for line in lines(location, interrupted=True))


def test_mlflow_out_of_reach_is_named_unless_it_is_left_out(location: StudyLocation):
    (line,) = lines(location, tracking_uri="http://bob:hunter2@127.0.0.1:9")
    assert line.startswith("MLflow not audited: at http://***@127.0.0.1:9: ConnectionRefusedError")
    assert lines(location, tracking_uri="http://127.0.0.1:9", tracking=False) == []


def test_missing_mlflow_database_is_named_and_not_created(location: StudyLocation):
    (Path(location.storage) / "mlflow.db").unlink()
    (line,) = lines(location)
    assert line.startswith("MLflow not audited: there is no sqlite:///")
    assert lines(location, interrupted=True) == []
    assert not (Path(location.storage) / "mlflow.db").exists()


def test_open_trial_that_mlflow_calls_finished_is_named_also_after_an_interruption(location: StudyLocation):
    statement = "UPDATE fgsearch_trials SET state = 'running', ended = NULL WHERE number = 0"
    change(Path(location.folder) / "study.db", statement)
    assert "trial 0: MLflow says FINISHED, must be KILLED (fgseg.interrupted: true)" in lines(
        location, interrupted=True
    )


def test_changed_batch_that_is_allowed_to_be_the_best_later_is_no_fault(location: StudyLocation):
    ledger = open_ledger(location)
    database = Path(location.folder) / "study.db"
    change(database, "UPDATE fgsearch_trials SET overrides = ? WHERE number = 0", '{"train.batch_size": 1}')
    assert open_ledger(location).best() is None
    ledger.record_run(replace(ledger.metadata, allow_changed_batch=True))
    sync(location)
    assert lines(location) == []


@pytest.fixture
def with_checkpoint(location: StudyLocation) -> StudyLocation:
    """The study with the result and the run of its untrained checkpoint."""
    LocalStore(location.folder).put(UNTRAINED, json.dumps(make_untrained().to_json()).encode())
    sync(location)
    return location


def test_rebuilt_mlflow_has_the_run_of_the_untrained_checkpoint(with_checkpoint: StudyLocation):
    rebuild(with_checkpoint)
    assert lines(with_checkpoint) == []


def test_deleted_study_leaves_nothing_of_the_untrained_checkpoint(with_checkpoint: StudyLocation):
    delete(with_checkpoint)
    assert read_runs(with_checkpoint.tracking_uri, "s", "") == []
    assert not Path(with_checkpoint.folder).exists()
