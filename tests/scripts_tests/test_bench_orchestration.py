"""The benchmark of the search itself runs, and its books are audited."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.ray
@pytest.mark.slow
def test_benchmark_loses_no_trial_and_prints_what_each_part_takes(environment: dict[str, str], tmp_path: Path):
    command = [sys.executable, "-m", "scripts.bench.orchestration", "--quick", "--only", "load"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none of 14 trials lost, the audit is clean" in done.stdout
    for ended in ("8", "4"):  # of trials whose epochs take no time, then of others
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {ended} |"))
        units = [cell.split()[-1] for cell in row.strip("| ").split(" | ")[1:]]
        assert units == ["MiB", "MiB", "ms", "ms", "ms", "s", "ms", "s"]
    assert "for a no-op trial of Ray Tune" in done.stdout


def test_driver_alone_loses_no_trial_and_prints_what_each_part_takes(environment: dict[str, str], tmp_path: Path):
    command = [sys.executable, "-m", "scripts.bench.orchestration", "--quick", "--only", "driver"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none of 14 trials lost, the audit is clean" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 4 |"))
    suggest, end = (float(cell.split()[0]) for cell in row.strip("| ").split(" | ")[6:8])
    assert suggest > 0 and end > 0


def test_benchmark_of_the_ledger_prints_what_an_ask_an_epoch_and_an_end_take(environment: dict[str, str]):
    command = [sys.executable, "-m", "scripts.bench.ledger", "--open", "2", "--ended", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 2 |"))
    assert all(float(cell.removesuffix(" ms")) > 0 for cell in row.strip("| ").split(" | ")[2:])
