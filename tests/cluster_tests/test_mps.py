"""NVIDIA MPS for trials that share a GPU, with a control program of the tests' own."""

import os
from pathlib import Path

import psutil
import pytest

from search.cluster import mps, ray_cluster
from search.console.documents import PlanDocument
from search.run import main
from search.study.config import SearchConfig
from search.study.resources import describe_mps

SHARED = SearchConfig(gpus_per_trial=0.25)
CONTROL = """#!/bin/sh
control="$CUDA_MPS_PIPE_DIRECTORY/control"
if [ "$1" = -f ]; then
    [ -e "$NOTES/broken" ] && exit 1
    [ -e "$NOTES/stubborn" ] && trap '' TERM
    echo "$$ ${CUDA_VISIBLE_DEVICES-all} $CUDA_MPS_LOG_DIRECTORY" > "$NOTES/daemon"
    touch "$control"
    while [ -e "$control" ]; do sleep 0.02; done
else
    read -r command
    echo "$command" >> "$NOTES/commands"
    [ -e "$control" ] || exit 1
    case "$command" in quit*) [ -e "$NOTES/stubborn" ] || rm "$control" ;; esac
fi
"""
"""Runs as the daemon with -f, else sends it a command; answers only while the daemon runs."""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the control program notes its calls; the files `broken` and `stubborn` change what it does."""
    program = tmp_path / "bin" / mps.MPS_PROGRAM
    program.parent.mkdir()
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv(mps.MPS_PIPES, raising=False)
    monkeypatch.setattr(mps, "CHECK", f"import os; assert os.path.exists(os.environ['{mps.MPS_PIPES}'] + '/control')")
    return tmp_path


def daemon_of(notes: Path) -> psutil.Process:
    return psutil.Process(int((notes / "daemon").read_text().split()[0]))


def test_daemon_runs_for_the_trials_and_ends_with_the_run(notes: Path):
    with mps.mps_daemon(SHARED) as variables:
        daemon, (_, devices, logs) = daemon_of(notes), (notes / "daemon").read_text().split()
        assert daemon.is_running() and devices == "all"
        assert Path(variables[mps.MPS_PIPES]).is_dir() and Path(logs).parent == Path(variables[mps.MPS_PIPES]).parent
        assert variables.keys() == {mps.MPS_PIPES} and mps.MPS_PIPES not in os.environ
    assert not daemon.is_running()
    assert (notes / "commands").read_text().splitlines()[-1] == "quit -t 1"
    assert list(notes.glob("fg-mps-*")) == []


def test_daemon_that_does_not_end_is_killed_by_its_process_id(notes: Path, monkeypatch: pytest.MonkeyPatch):
    (notes / "stubborn").touch()
    with mps.mps_daemon(SHARED):
        daemon = daemon_of(notes)
        monkeypatch.setattr(mps, "STOP_S", 0.3)
    assert not daemon.is_running()


def test_daemon_that_does_not_answer_is_told_and_not_used(notes: Path, capsys: pytest.CaptureFixture[str]):
    (notes / "broken").touch()
    with mps.mps_daemon(SHARED) as variables:
        assert variables == {}
    told = capsys.readouterr().err
    assert "NVIDIA MPS is not used, trials take turns on a GPU: nvidia-cuda-mps-control does not answer" in told


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("raise RuntimeError('CUDA error: MPS server is not ready')", "RuntimeError: CUDA error: MPS server is not"),
        ("import time; time.sleep(60)", "a process could not use a GPU within 0.5 s"),
    ],
)
def test_daemon_under_which_no_process_can_use_a_gpu_is_ended(
    notes: Path, check: str, reason: str, monkeypatch, capsys
):
    monkeypatch.setattr(mps, "CHECK", check)
    monkeypatch.setattr(mps, "CHECK_S", 0.5 if "sleep" in check else 60)
    with mps.mps_daemon(SHARED) as variables:
        assert variables == {}
        assert (notes / "commands").read_text().splitlines()[-1] == "quit -t 1"
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("search", "pipes", "described"),
    [
        (SearchConfig(), "", ""),
        (SearchConfig(gpus_per_trial=1), "", ""),
        (SearchConfig(gpus_per_trial=0.25, ray_address="head:6379"), "", "where the nodes of the cluster were started"),
        (SearchConfig(gpus_per_trial=0.25, mps="off"), "", "without NVIDIA MPS by --mps off"),
        (SHARED, "/the/users", "NVIDIA MPS of CUDA_MPS_PIPE_DIRECTORY=/the/users"),
    ],
)
def test_no_daemon_is_started_where_none_is_needed(
    notes: Path, monkeypatch: pytest.MonkeyPatch, search: SearchConfig, pipes: str, described: str
):
    monkeypatch.setenv(mps.MPS_PIPES, pipes)
    with mps.mps_daemon(search) as variables:
        assert variables == {} and not (notes / "daemon").exists()
    assert described in describe_mps(search) if described else describe_mps(search) == ""


def test_dry_run_shows_whether_trials_run_under_mps(
    notes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["--space=bas", "--dry-run", f"--storage={notes / 'runs'}", "--gpus-per-trial=0.25"]
    assert main(command) == 0
    assert "NVIDIA MPS, started for this run by nvidia-cuda-mps-control" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    document = PlanDocument.model_validate_json(capsys.readouterr().out)
    assert document.gpu_sharing == "NVIDIA MPS, started for this run by nvidia-cuda-mps-control"
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(command) == 0
    assert "nvidia-cuda-mps-control is not installed, so trials take turns" in capsys.readouterr().out
    assert not (notes / "daemon").exists()


def test_variables_of_the_daemon_reach_the_node_and_stay_out_of_the_driver(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("ray.init", lambda **options: seen.append(os.environ.get(mps.MPS_PIPES)))
    monkeypatch.setattr("ray._private.worker._worker_logs_enabled", True)
    ray_cluster.start(SHARED, {mps.MPS_PIPES: "/pipes"})
    assert seen == ["/pipes"] and mps.MPS_PIPES not in os.environ
