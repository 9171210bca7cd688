"""Recordings of learning curves, and searches that are replayed against them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_recording import small_recording

from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult
from scripts.replay.__main__ import print_costs, print_ranks, print_regrets
from scripts.replay.methods import Method, replay
from scripts.replay.record import (
    count_frames,
    describe,
    existing,
    finish,
    part_file,
    quasi_random_points,
    record_row,
    rows_to_record,
)
from scripts.replay.recorded_points import Curves, RecordedPoints
from scripts.replay.recording import combine, load_recording, save_recording
from scripts.replay.seeds import of_start_point
from search.ledger.trial_source import NewTrial
from search.study.plan import Repeat, make_plan
from search.study.space import load_space


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_recording(small_recording(), tmp_path / "hill.npz")
    return tmp_path / "hill.npz"


def test_a_recording_is_read_as_it_was_written(file: Path):
    content, before, after = file.read_bytes(), small_recording(), load_recording(file)
    assert after.header == before.header and after.keys == before.keys
    assert list(after.ranges) == list(before.ranges) != sorted(before.ranges)  # the order of the columns
    assert np.array_equal(after.hits, before.hits) and np.array_equal(after.miou, before.miou)
    save_recording(after, file)
    assert file.read_bytes() == content


def test_iou_comes_from_the_counts_and_leaves_out_what_a_frame_lacks():
    recording = replace(
        small_recording(),
        truth=np.array([[50, 10, 0], [40, 10, 10]]),
        predicted=np.array([[[[50, 5, 5], [40, 20, 0]]]]),
        hits=np.array([[[[45, 5, 0], [40, 10, 0]]]]),
    )
    assert recording.iou[0, 0].tolist() == [15 / 30, 0.0]
    assert recording.frame_miou[0, 0].tolist() == [0.5, (0.5 + 0.0) / 2]


def test_rows_of_other_settings_are_not_combined():
    one = small_recording()
    with pytest.raises(ValueError, match="different settings"):
        combine([one, replace(one, header=one.header | {"settings": {"train.lr": 1.0}})])


def test_points_of_a_recording_are_those_of_a_search_and_begin_with_the_start_point():
    space = load_space("all", RunConfig().data)
    rows = rows_to_record(space, points=4, seeds=3, seed=0)
    assert [row.seed for row in rows] == [0, 1, 2, 3, 1, 2]
    assert [row.params == space.start for row in rows] == [True, False, False, False, True, True]
    assert all(r.contains(row.params[name]) for row in rows for name, r in space.search.items())
    assert quasi_random_points(space, 3, seed=0) == [row.params for row in rows[1:4]]


def test_a_recording_names_neither_folders_nor_caches():
    plan = make_plan("bas", "configs/quickstart.yaml", {"data.cache": "/secret/cache"}, {}, None)
    assert "/" not in json.dumps(describe(plan)) and describe(plan)["settings"]["model.name"] == "streets"


def test_finished_trainings_become_one_file_in_order_and_an_extension_keeps_them(tmp_path: Path):
    whole, file, parts = small_recording(), tmp_path / "hill.npz", tmp_path / "parts"
    rows = rows_to_record(load_space("bas", RunConfig().data), 2, 1, 0)
    assert part_file(parts, rows[0]) != part_file(parts, rows[1])
    wanted = [replace(rows[0], params=whole.point(row), seed=seed) for row, seed in enumerate(whole.seeds.tolist())]
    for numbers in ([3, 0], [2, 1]):
        parts.mkdir()
        for number in numbers:
            save_recording(whole.rows(np.array([number])), part_file(parts, wanted[number]))
        finish(file, parts, wanted)
        assert not parts.exists()
    assert load_recording(file).keys == whole.keys[:4]
    assert [len(recording.keys) for recording in existing(file, parts)] == [4]


@pytest.mark.slow
def test_a_training_is_recorded_with_the_counts_that_it_reported(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reported = []

    def count_and_note(run: RunConfig, folder: str, frames: Any, result: EpochResult) -> np.ndarray:
        reported.append(result.frame_miou)
        return count_frames(run, folder, frames, result)

    monkeypatch.setattr("scripts.replay.record.count_frames", count_and_note)
    run = tiny(train__epochs=2, train__frame_scores=True)
    header = small_recording().header | {"foreground": [[c.key, c.label] for c in run.label_set().foreground]}
    row = Repeat({"loss.ssim": 0.4, "copy_paste.prob": 0.5}, 3)
    final = record_row(run.flat(), row, header, tmp_path / "row.npz")
    recording = load_recording(tmp_path / "row.npz")
    assert recording.keys == [((0.4, 0.5), 3)]
    assert recording.miou[0, -1] == final
    assert np.nanmean(recording.iou[0], axis=-1) == pytest.approx(recording.miou[0])
    assert recording.frame_miou[0] == pytest.approx(np.array(reported), nan_ok=True)


NEAR = {"loss.ssim": 1.1, "copy_paste.prob": 0.38}
START = {"loss.ssim": 1.0, "copy_paste.prob": 0.5}


def test_a_proposed_point_gets_the_curve_of_the_nearest_recorded_one_with_the_noise_of_a_seed():
    curves = Curves(small_recording())
    assert curves.value(NEAR) == curves.best_value == pytest.approx(0.6)
    points = RecordedPoints(curves, np.random.default_rng(0))
    found = {tuple(round(e.miou, 3) for e in points.curve(NewTrial(NEAR, "gp"))) for _ in range(20)}
    assert {curve[1:] for curve in found} == {(0.472, 0.531, 0.59), (0.488, 0.549, 0.61)}
    assert points.distances[0] == pytest.approx(np.hypot(np.log10(1.1) / 2, 0.02) / np.sqrt(2))


def test_the_value_of_a_point_is_the_mean_over_its_seeds_and_its_curve_is_one_of_them():
    curves = Curves(small_recording())
    assert curves.value(START) == pytest.approx(0.58)
    points = RecordedPoints(curves, np.random.default_rng(0))
    finals = {round(points.curve(NewTrial(START, "start"))[-1].miou, 3) for _ in range(20)}
    assert finals == {0.57, 0.59}


def test_interpolated_curves_change_between_the_recorded_points_and_are_near_them():
    curves, nearest = (Curves(small_recording(), interpolated) for interpolated in (True, False))
    other = NEAR | {"copy_paste.prob": 0.42}
    assert curves.value(NEAR) != curves.value(other) and nearest.value(NEAR) == nearest.value(other)
    assert curves.value(START) == pytest.approx(nearest.value(START), abs=0.03)
    miou, frames = curves.at(NEAR)
    assert miou.shape == (4,) and frames.shape == (4, 2)
    assert curves.best_value >= max(curves.value(point) for point in (NEAR, START))


def test_a_replay_finds_the_best_point_and_is_the_same_every_time(file: Path):
    outcome = replay(file, Method("random", "none"), seed=1, trials=30)
    assert outcome.regrets[0] == pytest.approx(0.02) and min(outcome.regrets) == pytest.approx(0)
    assert outcome.epochs == 30 * 4
    assert replay(file, Method("random", "none"), seed=1, trials=30) == outcome


def test_short_schedules_are_taken_from_a_recording_of_their_own(file: Path, tmp_path: Path):
    whole = small_recording()
    one = {name: getattr(whole, name)[:, :1] for name in ("seconds", "miou", "predicted", "hits")}
    save_recording(replace(whole, **one), tmp_path / "short.npz")
    outcome = replay(file, Method("auto", "short-full"), seed=0, trials=9, short=tmp_path / "short.npz")
    assert outcome.epochs == 3 * 4 + 6 * 1
    with pytest.raises(ValueError, match="see --short"):
        replay(file, Method("auto", "short-full"), seed=0, trials=9)


def test_a_pruner_saves_epochs_and_the_tables_show_how_many(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scripts.replay.__main__.RESAMPLES", 20)
    outcomes = {
        method: [replay(file, method, seed, trials=8) for seed in range(2)]
        for method in (Method("tpe", "none"), Method("tpe", "asha"))
    }
    print_ranks(small_recording())
    print_regrets(outcomes)
    print_costs(outcomes, full=32)
    lines = capsys.readouterr().out.splitlines()
    whole, stopped = (next(line for line in reversed(lines) if line.startswith(f"| {m} |")) for m in outcomes)
    assert "| 32.0 ± 0.0 | 1.00 |" in whole
    assert 8 <= float(stopped.split(" | ")[1].split(" ± ")[0]) < 32
    lost = np.mean([run.regrets[-1] for run in outcomes[Method("tpe", "asha")]]) - np.mean(
        [run.regrets[-1] for run in outcomes[Method("tpe", "none")]]
    )
    assert whole.split(" | ")[4] == "" and stopped.split(" | ")[4].startswith(f"{lost:.4f}")
    assert next(line for line in lines if line.startswith("| correlation")).endswith("| 1.00 (1.00 to 1.00) |")


FOLDER = Path(__file__).parents[2] / "scripts" / "replay" / "recordings"
RECORDINGS = sorted(path for path in FOLDER.glob("*.npz") if not path.stem.endswith("_short"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_shipped_recordings_hold_numbers_only_and_can_be_replayed(path: Path):
    recording = load_recording(path)
    assert len({point for point, _ in recording.keys}) >= 24 and len(of_start_point(recording).seeds) == 20
    assert not any(key.startswith(("data.root", "data.cache")) for key in recording.header["settings"])
    assert "/" not in recording.header["settings"]["model.name"] and path.stat().st_size < 2**20
    outcome = replay(path, Method("auto", "none"), seed=0, trials=6, interpolated=True)
    assert 0 <= outcome.regrets[-1] <= outcome.regrets[0] + 0.01 and outcome.epochs == 6 * recording.epochs


@pytest.mark.parametrize("whole", RECORDINGS, ids=lambda path: path.stem)
def test_shipped_short_schedules_are_of_the_same_points(whole: Path):
    short, epochs = whole.with_stem(f"{whole.stem}_short"), load_recording(whole).epochs
    assert set(load_recording(short).keys) <= set(load_recording(whole).keys)
    outcome = replay(whole, Method("tpe", "short-full"), seed=0, trials=8, short=short, interpolated=True)
    assert outcome.epochs == 2 * epochs + 6 * (epochs // 4)


def test_the_recordings_of_four_families_are_shipped():
    assert len(RECORDINGS) == 4
