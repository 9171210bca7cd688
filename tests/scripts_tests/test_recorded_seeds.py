"""The noise between the recorded seeds of a start point, and the A/A test on it."""

from dataclasses import replace

import numpy as np
import pytest
from small_recording import small_recording

from scripts.replay.recording import Recording, save_recording
from scripts.replay.seeds import correlation, counts_of, main, of_start_point, score_of, seeds_for

SEEDS = 12


def recorded(noise: float, seed: int = 0) -> Recording:
    """Twelve seeds of a start point in reverse order, and one other point; 30 frames of three classes."""
    generator = np.random.default_rng(seed)
    truth = np.tile(np.array([[900, 90, 60]], np.int32), (30, 1))
    share = (
        0.6 + noise * generator.standard_normal((SEEDS + 1, 1, 1, 1)) + 0.02 * generator.standard_normal((1, 1, 30, 1))
    )
    hits = (truth * np.clip(share, 0, 1)).astype(np.int32)
    start = small_recording()
    params = np.vstack([np.tile(start.params[0], (SEEDS, 1)), [[2.0, 0.1]]])
    seeds = np.array([*reversed(range(SEEDS)), 3])
    predicted = np.broadcast_to(truth, hits.shape).copy()
    rows = replace(start, params=params, seeds=seeds, seconds=np.ones((SEEDS + 1, 1)), truth=truth)
    found = replace(rows, hits=hits, predicted=predicted, miou=np.zeros((SEEDS + 1, 1)))
    return replace(found, miou=np.nanmean(found.iou, -1))


def test_the_start_point_has_all_its_seeds_in_order_and_no_other_point():
    start = of_start_point(recorded(0.02))
    assert start.seeds.tolist() == list(range(SEEDS))
    assert len(np.unique(start.params, axis=0)) == 1


def test_score_of_the_counts_is_the_recorded_miou():
    start = of_start_point(recorded(0.02))
    assert score_of(start)(counts_of(start).sum(1))[:, 0] == pytest.approx(start.miou[:, -1])


def test_noisier_seeds_need_more_of_them():
    quiet, loud = (of_start_point(recorded(noise)) for noise in (0.002, 0.02))
    few, many = (seeds_for(counts_of(start), 0.02, start) or 1001 for start in (quiet, loud))
    assert 2 <= few < many


def test_equal_seeds_of_a_recording_and_itself_correlate_fully():
    one, other = recorded(0.02), recorded(0.02, seed=1)
    assert correlation(one, one).startswith("correlation 1.00 ") and correlation(one, one).endswith("12 seeds")
    assert not correlation(one, other).startswith("correlation 1.00 ")


def test_command_prints_a_row_for_each_recording(tmp_path, monkeypatch, capsys):
    files = [tmp_path / "one.npz", tmp_path / "other.npz"]
    for seed, file in enumerate(files):
        save_recording(recorded(0.02, seed), file)
    monkeypatch.setattr("sys.argv", ["seeds", *map(str, files), "--comparisons", "20"])
    main()
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| one.npz |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "12" and cells[-1] == "" and cells[-2].endswith("%")  # no A/A test of two sides of ten seeds
    assert "mIoU of equal seeds, one.npz and other.npz: correlation" in shown
