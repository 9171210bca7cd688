"""The benchmark of the GPU path can be tried on a CPU, judges what it measured, and keeps to its time."""

import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fgseg.training.compiled_parts import PartsCache
from fgseg.training.compiled_step import CompiledStep
from scripts.bench.equality import paired_difference
from scripts.bench.gpu import collect, draw_frames, main, measure_parts, prepare_parts
from scripts.bench.gpu_parts import DRY_PARTS, PARTS, ROOT, bench_of, search_settings
from scripts.bench.gpu_targets import TARGETS
from search.study.plan import make_plan

pytestmark = pytest.mark.slow


def figures_of(shown: str) -> dict[str, float]:
    """The figures in the output of the benchmark."""
    lines = [line.split("\t") for line in shown.splitlines() if line.startswith("figure\t")]
    return {name: float(value) for _, name, value in lines}


def test_dry_run_prints_figures_and_judges_nothing(capsys: pytest.CaptureFixture[str]):
    main(["--dry", "--only", *(name for name in DRY_PARTS if name != "miou")])
    shown = capsys.readouterr().out
    figures = figures_of(shown)
    expected = {"batch of 2: ratio", "bas loss: ratio", "slc loss: source", "evaluation", "start of trial 2"}
    expected |= {"kernels of a step", "kernels of a step, ms", "bf16: step with its input, ms", "ceiling: copy, TB/s"}
    expected |= {f"batch of 2: {what}, ms" for what in ("step with its input", "step on one batch", "plain step")}
    assert expected <= figures.keys() and all(figures[name] > 0 for name in expected)
    assert figures["batch of 2: ours"] / figures["batch of 2: source"] == pytest.approx(
        figures["batch of 2: ratio"], rel=1e-4
    )
    assert shown.count("| not measured |") == len(TARGETS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own look at it
def test_dry_comparison_of_miou_trains_by_the_compiled_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    taken, take = [], CompiledStep.take
    monkeypatch.setattr(CompiledStep, "take", lambda step, group: (taken.append(step.compiled), take(step, group)))
    monkeypatch.setattr("fgseg.training.compiled_step.CACHE", PartsCache())
    main(["--dry", "--only", "miou"])
    figures = figures_of(capsys.readouterr().out)
    assert {f"mIoU, {side}, seed {seed}" for side in ("plain", "fast") for seed in (0, 1)} <= figures.keys()
    assert len(taken) >= 2 and None not in taken


def test_trainings_with_equal_seeds_are_compared_in_pairs():
    mean, error = paired_difference({"plain": [0.1, 0.2, 0.3], "fast": [0.11, 0.22, 0.33]})
    assert (mean, error) == pytest.approx((0.02, 0.01 / math.sqrt(3)))


def test_no_part_takes_the_whole_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits: list[float] = []
    monkeypatch.setattr("scripts.bench.gpu.collect", lambda command, limit_s: limits.append(limit_s) or {})
    measure_parts(["step-2", "search"], tmp_path, 8, 1)
    measure_parts(["search"], tmp_path, 1, 1)
    assert limits[:2] == [PARTS["step-2"].limit_s, PARTS["search"].limit_s] and limits[2] == pytest.approx(60, abs=1)


def test_machine_and_figures_are_written_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, seen = tmp_path / "measured.json", []

    def collect_one(command: list[str], limit_s: float) -> dict[str, float]:
        seen.append(json.loads(out.read_text())["figures"] if out.exists() else {})
        return {command[4]: float(len(seen))}

    monkeypatch.setattr("scripts.bench.gpu.collect", collect_one)
    measure_parts(["step-2", "losses"], tmp_path, 8, 1, out)
    written = json.loads(out.read_text())
    assert seen == [{}, {"step-2": 1.0}] and written["figures"] == {"step-2": 1.0, "losses": 2.0}
    assert "torch" in written["machine"]


def test_two_steps_are_compiled_at_once_beside_the_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, running, most = threading.Lock(), Counter(), Counter()

    def run(end: float, job: Callable, argument: object) -> None:
        with lock:
            running[job.__name__] += 1
            most[job.__name__] = max(most[job.__name__], running[job.__name__])
        time.sleep(0.2)
        with lock:
            running[job.__name__] -= 1

    monkeypatch.setattr("scripts.bench.gpu.run_until", run)
    prepare_parts(bench_of(tmp_path, dry=True, seconds=0), ["step-2", "step-8", "start", "search", "step-1"], 60)
    assert most == {"compile_step": 2, "draw_frames": 1}


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
