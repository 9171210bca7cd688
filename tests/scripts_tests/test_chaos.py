"""scripts.chaos: the search is killed at random moments, and around every durable write, and survives."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.chaos.__main__ import draw_faults
from scripts.chaos.crash_recorder import kind_of

ROOT = Path(__file__).parent.parent.parent


def test_faults_of_a_seed_are_always_the_same_and_those_of_another_differ():
    random.seed(0)
    first = draw_faults(40, 1, "any")
    random.seed(1)
    assert draw_faults(40, 1, "any") == first
    assert draw_faults(40, 2, "any") != first
    assert {fault.kind for fault in first} == {"driver", "worker", "stop", "tracker"}


@pytest.mark.ray
@pytest.mark.slow
def test_kill_of_the_driver_is_survived_with_clean_books(environment: dict[str, str], tmp_path: Path):
    command = [sys.executable, "-m", "scripts.chaos", "--kills", "1", "--seed", "6"]
    done = subprocess.run(
        [*command, "--storage", str(tmp_path / "chaos")], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed"
    assert sum(line.endswith("  ok") for line in done.stdout.splitlines()) == 2


@pytest.mark.slow
def test_study_survives_a_crash_around_every_durable_write(environment: dict[str, str]):
    # One process, since each records the points again, and the tests beside it use the other core.
    command = [sys.executable, "-m", "scripts.chaos.crash_points", "--jobs", "1"]
    done = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, _, last = done.stdout.splitlines()
    count = re.fullmatch(r"(\d+) crash points, 0 failed", last)
    assert count and int(count[1]) >= 600
    assert {row.split("failed", 1)[1].strip().split(":")[0] for row in rows} == documented_kinds()


def test_write_of_no_documented_kind_is_refused():
    with pytest.raises(ValueError, match=r"^small/other\.txt is of no kind"):
        kind_of("small/other.txt")


def documented_kinds() -> set[str]:
    """The kinds of writes in the table of search/README.md, without the remarks in brackets."""
    section = (ROOT / "search" / "README.md").read_text(encoding="utf-8").split("### Crash points")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \| `", section, re.MULTILINE)
    return {kind for cell in cells for kind in re.sub(r" \(.*?\)", "", cell).split(", ")}


@pytest.mark.slow
def test_wrong_order_of_writes_is_found(environment: dict[str, str]):
    """The file that marks an exported model as whole, written before the weights."""
    code = """
import sys
from unittest.mock import patch
from fgseg.storage.store import open_store
from scripts.chaos.crash_points import main
def write_reversed(folder, files, confirm):
    for name in reversed(files):
        open_store(folder).put(name, files[name])
with patch("search.export.model.replace_files", write_reversed):
    sys.exit(main(["--jobs", "1", "--kinds", "exported model"]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: after small/model/origin.json" in done.stdout
