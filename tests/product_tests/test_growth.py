"""The changes that CONTRIBUTING.md shows, applied to a copy of the tree and run there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, absent

pytestmark = pytest.mark.slow

PARTS = ("configs", "fgseg", "mlflow", "scripts", "search", "tests", "pyproject.toml", "README.md", "CONTRIBUTING.md")
TRAINING = """
import sys
from fgseg.config.loading import parse_assignments
from fgseg.training.loop import train
from search.study.plan import make_plan
settings = parse_assignments(sys.argv[3:])
run = make_plan(sys.argv[1], "configs/quickstart.yaml", settings, {}, None).settings
(epoch,) = train(run, sys.argv[2])
print(sorted(epoch.terms), run.augment.flip_prob)
"""


@pytest.fixture(scope="module")
def changes() -> dict[str, str]:
    """The diffs by their headings."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```$", text, re.M | re.S))


@pytest.fixture(scope="module")
def grown(changes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all of them applied."""
    if shutil.which("git") is None:
        absent("git is not here, which applies the changes")
    copy = tmp_path_factory.mktemp("grown")
    for part in (ROOT / name for name in PARTS):
        if part.is_dir():
            shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(part, copy)
    for heading, diff in changes.items():
        command = ["git", "apply", "--verbose", "-"]
        own = os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)}
        applied = subprocess.run(command, cwd=copy, env=own, input=diff, text=True, capture_output=True)
        advice = f"the change under '{heading}' in CONTRIBUTING.md no longer applies: bring it up to date"
        assert applied.returncode == 0, f"{advice}\n{applied.stderr}"
    return copy


def python(tree: Path, *arguments: str) -> str:
    """What a command prints that runs in a tree; it must end well."""
    own = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(tree: Path, *arguments: str) -> str:
    return python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def train(tree: Path, space: str, folder: Path, *settings: str) -> str:
    """Train one epoch on two small scenes."""
    small = ["data.height=32", "data.width=64", "data.train=2", "data.val=4", "data.test=0", "train.epochs=1"]
    small.append("model.name=small")
    return python(tree, "-c", TRAINING, space, str(folder), *small, f"data.cache={folder}", *settings)


def test_three_changes_are_shown(changes: dict[str, str]):
    assert list(changes) == ["An approach family", "A data set", "A loss term"]


def test_new_family_is_listed_planned_and_trained(grown: Path, tmp_path: Path):
    assert "BAS + flip" in python(grown, "-m", "search.run", "--list")
    small = [word for s in ("train=4", "val=2", f"cache={tmp_path}/cache") for word in ("--set", f"data.{s}")]
    command = ["-m", "search.run", "--space", "bas_flip", "--dry-run", "--storage", str(tmp_path), *small]
    planned = python(grown, *command)
    assert "trials of BAS + flip (bas_flip)" in planned and "augment.flip_prob" in planned
    assert train(grown, "bas_flip", tmp_path) == "['cross_entropy', 'soft_iou', 'ssim'] 0.5\n"


def test_new_data_set_passes_the_tests_of_every_reader(grown: Path):
    assert " passed" in run_tests(grown, "tests/data_tests/test_readers.py", "-k", "kitti")


def test_new_loss_term_passes_the_tests_of_every_term_and_trains(grown: Path, tmp_path: Path):
    assert " passed" in run_tests(grown, "tests/losses_tests/test_losses.py", "-k", "tversky")
    assert train(grown, "baseline", tmp_path, "loss.tversky=0.5") == "['cross_entropy', 'tversky'] 0.0\n"


def test_grown_tree_keeps_its_structure_and_settings(grown: Path):
    python(grown, "-m", "scripts.write_settings")
    assert "| `loss.tversky` | a number at least 0 |" in (grown / "configs" / "README.md").read_text(encoding="utf-8")
    run_tests(
        grown,
        "tests/test_architecture.py",
        "tests/scripts_tests/test_write_settings.py",
        "tests/study_tests/test_space.py",
    )
