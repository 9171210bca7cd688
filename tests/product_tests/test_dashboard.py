"""Optuna's dashboard opens a study's ledger as it stands."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept_study import finished_study

pytestmark = pytest.mark.server


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """The address of a dashboard over a study of three trials."""
    finished_study(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), f"sqlite:///{tmp_path}/s/study.db"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=20)


def ask(address: str, limit_s: float = 60) -> Any:
    """What the dashboard answers, once it does."""
    end = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_optuna_dashboard_lists_the_trials_of_a_study(dashboard: str):
    studies = ask(f"{dashboard}/api/studies")["study_summaries"]
    assert [study["study_name"] for study in studies] == ["s"]
    trials = ask(f"{dashboard}/api/studies/{studies[0]['study_id']}?after=0")["trials"]
    assert [(t["number"], t["state"].lower()) for t in trials] == [(0, "complete"), (1, "pruned"), (2, "fail")]
