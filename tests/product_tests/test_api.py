"""The verbs in Python."""

import re
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest
from conftest import ROOT
from kept_study import finished_study

import search
from fgseg.config.errors import ConfigError
from search import Study, api, compare_families, open_study, run_search


def example() -> str:
    """The README's Python example."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.ray
@pytest.mark.slow
def test_the_example_of_the_readme_runs_as_it_stands(environment: dict[str, str], tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", example()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1 complete 0\.\d+ \d", done.stdout, re.MULTILINE), done.stdout
    assert "ledger, checkpoints and MLflow agree" in done.stdout
    assert (tmp_path / "runs" / "tried" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_study_in_python_gives_its_trials_as_rows(tmp_path: Path):
    finished_study(tmp_path)
    study = open_study("s", tmp_path)
    assert isinstance(study, Study)
    assert [(row["trial"], row["state"]) for row in study.rows()] == [(0, "complete"), (1, "pruned"), (2, "fail")]
    assert (study.best and study.best.value) == study.rows()[0]["val/miou"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bascp",), r"did you mean bas_cp"),
        ((3,), "space: got 3, must be the name of a family"),
        (("bas", ["train.epochs=1"]), r"settings: got \['train.epochs=1'\], must be a mapping"),
        (("bas", {"train.epoch": 1}), r"train\.epoch: no such setting; did you mean train\.epochs"),
    ],
)
def test_mistakes_are_those_of_the_command(arguments: tuple, message: str):
    with pytest.raises(ConfigError, match=message):
        run_search(*arguments)


def test_a_signal_before_anything_is_written_raises_keyboard_interrupt(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(api, "search_and_confirm", lambda plan, signals: signals.handle(SIGTERM, None))
    with pytest.raises(KeyboardInterrupt):
        run_search("bas", storage=str(tmp_path))


def test_mistakes_of_a_comparison_are_those_of_its_command(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--point: got 'better', must be one of: start, best"):
        compare_families(["bas"], point="better")
    with pytest.raises(ConfigError, match=r"config: got {}, must be the path"):
        compare_families(["bas"], config={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"spaces: got 'bas', must be a list of names"):
        compare_families("bas")
    with pytest.raises(ConfigError, match=r"seeds: got 'many', must be a whole number or 'auto'"):
        compare_families(["bas"], seeds="many")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--trials: a comparison trains --seeds repeats"):
        compare_families(["bas"], trials=3)
    with pytest.raises(ConfigError, match=r"no study quickstart-bas"):
        compare_families(["bas"], point="best", storage=str(tmp_path))


@pytest.mark.slow
def test_report_of_a_study_is_written_anew(tmp_path: Path):
    finished_study(tmp_path)
    assert "0.3000" in Path(open_study("s", tmp_path).report()).read_text(encoding="utf-8")


def test_an_unknown_setting_of_the_search_names_the_nearest():
    with pytest.raises(ConfigError, match=r"--trails.*did you mean.*trials"):
        run_search("bas", trails=3)


def test_the_package_offers_the_verbs_and_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = search.runn
