"""The benchmark of the GPU path can be tried on a CPU, judges what it measured, and keeps to its time."""

import sys
import time
from pathlib import Path

import pytest

from scripts.bench.gpu import collect, draw_frames, main
from scripts.bench.gpu_parts import ROOT, bench_of, search_settings
from scripts.bench.gpu_targets import TARGETS
from search.study.plan import make_plan

pytestmark = pytest.mark.slow


def test_dry_run_prints_figures_and_judges_nothing(capsys: pytest.CaptureFixture[str]):
    main(["--dry"])
    shown = capsys.readouterr().out
    figures = dict(line.split("\t")[1:] for line in shown.splitlines() if line.startswith("figure\t"))
    expected = {"batch of 2: ratio", "bas loss: ratio", "slc loss: source", "evaluation", "start of trial 2"}
    assert expected <= figures.keys() and all(float(figures[name]) > 0 for name in expected)
    # On a CPU both sides of this comparison are the plain step.
    assert figures["mIoU, plain, seed 1"] == figures["mIoU, fast, seed 1"]
    assert shown.count("| not measured |") == len(TARGETS)


def test_figures_are_judged_by_their_goals():
    figures = {"batch of 2: ratio": 8.0, "batch of 8: ratio": 13.9, "evaluation": 3.1, "start of trial 2": 1.5}
    rows = {target.figure: target.row(figures) for target in TARGETS}
    assert rows["batch of 2: ratio"].endswith("| at least 8 x | 8 x | reached |")
    assert rows["batch of 8: ratio"].endswith("| at least 14 x | 13.9 x | missed |")
    assert rows["evaluation"].endswith("| at most 3 s | 3.1 s | missed |")
    assert rows["start of trial 2"].endswith("| 1.5 s | reached |")
    assert rows["driver"].endswith("| | not measured |")


def test_figures_of_a_part_that_is_cut_off_count(capsys: pytest.CaptureFixture[str]):
    part = "import time; print('figure\\tone\\t1.5', flush=True); time.sleep(600); print('figure\\ttwo\\t2')"
    started = time.monotonic()
    assert collect([sys.executable, "-c", part], 5) == {"one": 1.5}
    assert time.monotonic() - started < 300
    assert "failed or cut off, exit code -" in capsys.readouterr().out


def test_frames_drawn_beforehand_are_those_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sets = search_settings(bench_of(tmp_path, dry=True, seconds=0)) | {"data.train": 3, "data.height": 64}
    drawn = []
    monkeypatch.setattr("scripts.bench.gpu.load_splits", lambda data, names: drawn.append(data))
    draw_frames(sets)
    assert drawn == [make_plan("bas_cp", ROOT / "configs" / "quickstart.yaml", sets, {}, None).settings.data]
