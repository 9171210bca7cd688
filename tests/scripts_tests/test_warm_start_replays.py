"""Replays of --warm-start against recordings."""

from pathlib import Path

import pytest
from small_recording import small_recording

from scripts.replay.intervals import compare_trials, trials_to_reach
from scripts.replay.recording import save_recording
from scripts.replay.warm_start import shared_settings, warm_regrets, worst_point


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_recording(small_recording(), tmp_path / "hill.npz")
    return tmp_path / "hill.npz"


def test_trials_are_counted_until_the_target_is_reached():
    assert [trials_to_reach([0.3, 0.1, 0.2], target) for target in (0.3, 0.15, 0.0)] == [1, 2, 3]
    cold, warm = [[3, 3, 1, 0], [3, 3, 3, 1]], [[3, 2, 0, 0], [3, 3, 3, 3]]  # a target of 2: the mean of 1 and 3
    text = compare_trials(cold, warm, trials=3)
    assert text == "cold 3.5 ± 6.4, warm 3.0 ± 12.7, 0.86 times (0.67 to 1.00); never: 0 and 1 of 2"
    assert "1.00 times (1.00 to 1.00)" in compare_trials(cold, cold, trials=3)


def test_shared_settings_keep_the_start_of_what_the_other_family_does_not_search():
    point = shared_settings({"loss.ssim": 1e9, "train.lr": 1e-3}, small_recording())
    assert point == {"loss.ssim": small_recording().ranges["loss.ssim"].high, "copy_paste.prob": 0.5}


def test_a_search_that_begins_with_the_selected_point_of_a_study_has_its_regret_after_two_trials(file: Path):
    misleading = warm_regrets(file, None, 4, seed=0)
    related = warm_regrets(file, file, 12, seed=0)
    assert len(related) == 24 and len(misleading) == 8
    assert related[1] < related[0] == misleading[0] == misleading[1]
    assert worst_point(file) != shared_settings({}, small_recording())
