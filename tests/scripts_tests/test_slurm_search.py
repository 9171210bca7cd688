"""scripts/slurm_search.sh, with commands in place of SLURM's and of the search that record their arguments."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = {
    "srun": """
echo "srun $*" >>"$CALLS"
case "$*" in
    *cluster_head*) echo "cluster: it is up"; exec sleep 60 ;;
esac
""",
    "python": """
trap 'echo stopped >>"$CALLS"; exit 143' TERM
echo "python $*" >>"$CALLS"
while [ -n "$WAITS" ] || ! grep -q cluster_worker "$CALLS"; do sleep 0.05; done
exit "$CODE"
""",
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "hostname": "echo 127.0.0.1 10.0.0.1",
}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job on two nodes."""
    for name, text in COMMANDS.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{text.strip()}\n")
        path.chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "PYTHON": sys.executable}
    slurm = {"JOB_ID": str(os.getpid()), "SUBMIT_DIR": str(ROOT), "JOB_NUM_NODES": "2"}
    named = {f"SLURM_{key}": value for key, value in slurm.items()} | {"SLURMD_NODENAME": "n1"}
    return os.environ | own | named | {"WAITS": "", "CODE": "0"}


def calls(job: dict[str, str]) -> list[str]:
    path = Path(job["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def start(job: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = ["bash", str(ROOT / "scripts" / "slurm_search.sh"), *arguments]
    return subprocess.Popen(command, env=job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("code", [0, 1])
def test_head_and_workers_are_steps_of_the_job_and_the_search_joins_them(job: dict[str, str], code: int):
    with start(job | {"CODE": str(code)}, "--space", "bas_cp") as process:
        assert process.wait(30) == code
    head, *others = calls(job)
    address = f"127.0.0.1:{20000 + os.getpid() % 10000}"
    assert "--nodes=1 --nodelist=n1 scripts/cluster_head.sh --host 127.0.0.1 --port" in head
    assert sorted(line.split()[0] for line in others) == ["python", "srun"]
    worker, search = sorted(others, key=lambda line: not line.startswith("srun"))
    assert f"--nodes=1 --exclude=n1 scripts/cluster_worker.sh --address {address}" in worker
    assert search == f"python -m search.run --ray-address {address} --space bas_cp"


def test_job_that_must_end_stops_the_search_and_is_queued_again(job: dict[str, str]):
    with start(job | {"WAITS": "1"}) as process:
        deadline = time.monotonic() + 30
        while not any(line.startswith("python") for line in calls(job)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert calls(job)[-2:] == ["stopped", f"scontrol requeue {job['SLURM_JOB_ID']}"]


def test_outside_a_job_and_outside_the_project_it_is_refused(job: dict[str, str], tmp_path: Path):
    for changes, says in (
        ({"SLURM_JOB_ID": ""}, "not in a SLURM job"),
        ({"SLURM_SUBMIT_DIR": "/"}, "/ is not fgsearch"),
    ):
        with start(job | changes) as process:
            shown, _ = process.communicate(timeout=30)
        assert (process.returncode, shown.count("\n")) == (2, 1)
        assert f"error: {says}" in shown
