"""scripts.chaos: the search is killed at random moments, and around every durable write, and survives."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.chaos.__main__ import draw_faults


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
    *kinds, _, last = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ crash points, 0 failed", last)
    written = {"ledger", "lock", "owner file", "manifest", "checkpoint file", "MLflow", "optuna.db", "report"}
    assert written < {line.split("failed", 1)[1].strip().split(":")[0] for line in kinds}
