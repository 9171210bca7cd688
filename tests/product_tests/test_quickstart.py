"""The main job as the README starts it: one run, looked at from every side."""

import os
import re
import sqlite3

import pytest
from conftest import LIMIT_S, Finished
from thin_street import FOREGROUND

from fgseg.checkpoints.untrained_result import UntrainedResult, read_untrained
from fgseg.config.settings import DataConfig
from fgseg.storage.store import LocalStore
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.study.space import load_space
from search.tracking.run_reader import CHECKPOINT, read_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]
PANELS = ("photo", "truth", "checkpoint", "start", "best", "changed pixels")
"""Pictures of a frame in the report."""


@pytest.fixture(scope="session")
def trials(quickstart: Finished) -> list[TrialRecord]:
    url = f"sqlite:///{quickstart.storage / 'quickstart-bas_cp' / 'study.db'}"
    return Ledger(url, "quickstart-bas_cp").trials()


def test_main_job_ends_well(quickstart: Finished):
    assert quickstart.code == 0, quickstart.output


def test_main_job_needs_no_more_than_twelve_minutes_of_two_cores(quickstart: Finished):
    """Bound the processor time, since other work on the machine stretches the wall time.

    Training is bound by memory: beside other work, which shares the caches, the same steps took up to twice the
    processor time.
    """
    assert quickstart.cpu_s < 2 * 720


@pytest.fixture(scope="session")
def untrained(quickstart: Finished) -> UntrainedResult:
    """The result of the shipped checkpoint before any training."""
    result = read_untrained(LocalStore(quickstart.storage / "quickstart-bas_cp"))
    assert result is not None
    return result


def test_best_trial_is_better_than_the_untrained_checkpoint_and_finds_every_class(
    trials: list[TrialRecord], untrained: UntrainedResult
):
    best = max(trials, key=lambda t: t.value or 0).epochs[-1]
    assert best.miou >= 0.5
    assert best.miou > untrained.miou
    assert min(best.iou.values()) > 0.1


def test_all_eight_trials_are_complete_with_every_epoch_once(trials: list[TrialRecord]):
    assert [t.number for t in trials] == list(range(8))
    assert {t.state for t in trials} == {State.COMPLETE}
    assert all([e.epoch for e in t.epochs] == list(range(1, 4)) for t in trials)


def test_trial_zero_is_the_start_point_and_the_best_is_not_below_it(trials: list[TrialRecord]):
    assert trials[0].params == load_space("bas_cp", DataConfig()).start
    assert max(t.value or 0 for t in trials) >= (trials[0].value or 1)


def test_value_of_a_trial_is_the_miou_of_its_last_epoch(trials: list[TrialRecord]):
    assert [t.value for t in trials] == [t.epochs[-1].miou for t in trials]


def test_log_has_a_line_for_each_trial_with_the_time_left_and_none_for_epochs(quickstart: Finished):
    ended = re.findall(
        r"^\d+:\d\d  trial 00(\d)  finished  mIoU 0\.\d{4}  \|  (\d)/8 trials, best .*, about \d+:\d\d left",
        quickstart.output,
        re.MULTILINE,
    )
    assert sorted(number for number, _ in ended) == list("01234567")
    assert [int(count) for _, count in ended] == list(range(1, 9))
    assert "epoch" not in quickstart.output


def test_closing_lines_tell_scores_places_and_what_to_do_next(quickstart: Finished):
    end = quickstart.output[quickstart.output.index("validation") :]
    assert all(c.name in end for c in FOREGROUND) and "thin mIoU" in end
    assert all(text in end for text in ("checkpoint, ┃", "untrained ┃", "start ┃", "over ┃"))
    assert f"mlflow server --backend-store-uri sqlite:///{quickstart.storage}/mlflow.db" in end
    assert "python -m search.run --space bas_cp --storage" in end
    assert "--trials 16" in end
    report = quickstart.storage / "quickstart-bas_cp" / "report" / "report.html"
    assert f"report:   {report}" in end
    assert all(f"<figcaption>{panel}</figcaption>" in report.read_text() for panel in PANELS)
    assert report.stat().st_size < 3e6
    assert "over the untrained checkpoint" in report.read_text()
    assert "| **mIoU** |" in report.with_suffix(".md").read_text()


def test_the_best_trial_is_a_finished_model_that_mlflow_has_registered(quickstart: Finished):
    folder = quickstart.storage / "quickstart-bas_cp" / "model"
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(os.listdir(folder))
    assert f"use:      python -m fgseg.predict {folder} PHOTOS --out DIR" in quickstart.output
    with sqlite3.connect(quickstart.storage / "mlflow.db") as database:
        versions = database.execute("SELECT name, version FROM model_versions").fetchall()
    assert versions == [("quickstart-bas_cp", 1)]


def test_ledger_checkpoints_and_mlflow_agree(quickstart: Finished):
    assert audit(quickstart.storage, "quickstart-bas_cp", trials=8) == []


def test_a_run_prints_nothing_that_a_person_must_ignore(quickstart: Finished):
    assert not re.search(r"(?i)warning|traceback|deprecat|error", quickstart.output)


def test_nothing_is_written_to_the_current_folder(quickstart: Finished):
    assert list(quickstart.folder.iterdir()) == []


def test_mlflow_holds_a_run_for_each_trial_the_study_and_the_checkpoint(
    quickstart: Finished, trials: list[TrialRecord], untrained: UntrainedResult
):
    query, uri = "SELECT name, status FROM runs ORDER BY name", f"sqlite:///{quickstart.storage / 'mlflow.db'}"
    with sqlite3.connect(quickstart.storage / "mlflow.db") as database:
        runs = database.execute(query).fetchall()
    expected = [*(f"bas_cp/{t.number:03d}" for t in trials), "bas_cp/checkpoint", "quickstart-bas_cp"]
    assert runs == [(name, "FINISHED") for name in sorted(expected)]
    (run,) = (run for run in read_runs(uri, "quickstart-bas_cp", "") if run.number == CHECKPOINT)
    assert run.points["val/miou"] == [(0, untrained.miou)]


def test_mlflow_holds_every_epoch_of_the_ledger_once(quickstart: Finished, trials: list[TrialRecord]):
    query = (
        "SELECT r.name, m.step, m.value FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        "WHERE m.key = 'val/miou' AND r.name LIKE 'bas_cp/0%' ORDER BY r.name, m.step"
    )
    with sqlite3.connect(quickstart.storage / "mlflow.db") as database:
        points = database.execute(query).fetchall()
    assert points == [(f"bas_cp/{t.number:03d}", e.epoch, e.miou) for t in trials for e in t.epochs]


def test_same_command_again_finds_nothing_left_to_do(quickstart: Finished, search, trials: list[TrialRecord]):
    again = search(quickstart.storage, "--space", "bas_cp")
    assert again.code == 0, again.output
    assert "finished  mIoU" not in again.output
    assert "checkpoint, ┃" in again.output


def test_another_identity_under_the_same_name_is_refused_with_the_difference(quickstart: Finished, search):
    refused = search(quickstart.storage, "--space", "bas_cp", "--set", "train.epochs=2")
    assert refused.code == 2
    assert "settings.train.epochs: 3 there, 2 now" in refused.output


def test_list_of_studies_shows_the_best_trial(quickstart: Finished, search):
    listed = search(quickstart.storage, "--list-studies")
    assert listed.code == 0
    assert re.search(r"quickstart-bas_cp +8 +0 +0 +0 +0\.\d{4} \(trial 00\d\)", listed.output)
