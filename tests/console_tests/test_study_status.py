"""What another shell sees of a study."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from builders import make_trial, make_untrained
from kept_study import begin, finished_study, train

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.storage.store import LocalStore
from search import status
from search.console.study_status import TrialTime, trial_time
from search.study.location import StudyLocation


@pytest.mark.slow
def test_status_of_a_finished_study_shows_the_best_by_class_and_why_others_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    finished_study(tmp_path)
    assert status.main(["--study", "s", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "s: no driver runs" in shown
    assert "3/3 trials, best 0.3000 (trial 000), 1 failed, not running" in shown
    assert re.search(r"best 000 +3/3 +0\.3000", shown)
    assert "fence 0.3000" in shown
    assert "trial 002 FAILED: the loss is nan in epoch 3" in shown


def test_status_names_the_driver_at_work_and_the_running_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = begin(tmp_path)
    with ledger.lock():
        train(ledger, tmp_path / "s", epochs=2)
        assert status.main(["--study", "s", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"s: runs on {socket.gethostname()}, process {os.getpid()}\n" in shown
    assert re.search(r"000 +2/3 +\d:\d\d +0\.2000 +0\.2000 +0\.7000 +9\.5", shown)
    assert "left" in shown


def test_fixed_cost_is_what_a_trial_takes_beside_its_epochs():
    """Two finished trials of 50 s with three epochs of 10 s each; a continued trial does not count."""
    records = [make_trial(0), make_trial(1), make_trial(2, attempt=2, ended=1e9), make_trial(3, "running")]
    duration = trial_time(records)
    assert duration == TrialTime(50, 30)
    assert str(duration) == "a trial takes 0:50: 0:30 of training and validation, 0:20 (40%) of fixed cost"
    assert trial_time([make_trial(0, "running")]) is None


@pytest.mark.slow
def test_following_ends_with_the_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    finished_study(tmp_path)
    assert status.main(["--study", "s", "--storage", str(tmp_path), "--follow"]) == 0
    assert "3/3 trials" in capsys.readouterr().out


@pytest.mark.slow
def test_unknown_study_is_a_mistake_that_names_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    finished_study(tmp_path)
    assert status.main(["--study", "t", "--storage", str(tmp_path)]) == 2
    assert "no study t in" in (shown := capsys.readouterr().err)
    assert "there are: s" in shown


def test_status_shows_the_untrained_checkpoint(location: StudyLocation, capsys: pytest.CaptureFixture[str]):
    LocalStore(location.folder).put(UNTRAINED, json.dumps(make_untrained().to_json()).encode())
    assert status.main(["--study", "s", "--storage", location.storage]) == 0
    assert "checkpoint, untrained: mIoU 0.2500" in capsys.readouterr().out
