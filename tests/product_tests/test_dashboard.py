"""Optuna's dashboard shows all studies of a storage, with a note and the overlays of every trial."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import absent
from kept_study import finished_study

from fgseg.visual.overlays import overlay_name
from scripts.browser import BROWSER, DRIVER, Pages, open_browser
from search.tracking.optuna_studies import ARTIFACTS, DATABASE
from search.tracking.sync import sync

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage of two studies of three trials; trial 0 of the first has an overlay."""
    storage = tmp_path_factory.mktemp("dashboard")
    for name in ("s", "other"):
        (storage / name / "trials" / "0").mkdir(parents=True)
    (storage / "s" / "trials" / "0" / overlay_name(1, "frame")).write_bytes(b"a picture")
    finished_study(storage)
    finished_study(storage, "other")
    return storage


@pytest.fixture(scope="module")
def dashboard(storage: Path) -> Iterator[str]:
    """The address of a dashboard over the storage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), f"sqlite:///{storage / DATABASE}"]
    options = ["--artifact-dir", str(storage / ARTIFACTS), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options, "--server", "wsgiref"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
                return answer.read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module")
def studies(dashboard: str) -> dict[str, int]:
    """The id of every study that the dashboard lists."""
    summaries = json.loads(ask(f"{dashboard}/api/studies"))["study_summaries"]
    return {study["study_name"]: study["study_id"] for study in summaries}


@pytest.fixture(scope="module")
def shown(dashboard: str, studies: dict[str, int]) -> dict[str, Any]:
    """What the dashboard knows of the first study."""
    return json.loads(ask(f"{dashboard}/api/studies/{studies['s']}?after=0"))


def test_dashboard_lists_every_study_of_the_storage(studies: dict[str, int]):
    assert studies.keys() == {"s", "other"}


def test_trials_have_their_states_values_and_epochs(shown: dict[str, Any]):
    trials = shown["trials"]
    assert [(t["number"], t["state"].lower()) for t in trials] == [(0, "complete"), (1, "pruned"), (2, "fail")]
    assert trials[0]["values"] == [pytest.approx(0.3)]
    assert [value["step"] for value in trials[0]["intermediate_values"]] == [1, 2, 3]


def test_notes_hold_the_classes_or_the_reason(shown: dict[str, Any]):
    complete, pruned, failed = (t["note"]["body"] for t in shown["trials"])
    assert "| fence | 0.3000 |" in complete and "| **mIoU** | **0.3000** |" in complete
    assert pruned == "Trial 001 is pruned: pruned at epoch 1"
    assert failed == "Trial 002 is fail: the loss is nan in epoch 3"


def test_overlays_are_artifacts(dashboard: str, studies: dict[str, int], shown: dict[str, Any]):
    (artifact,) = shown["trials"][0]["artifacts"]
    assert artifact["filename"] == "frame.png"
    trial = shown["trials"][0]["trial_id"]
    assert ask(f"{dashboard}/artifacts/{studies['s']}/{trial}/{artifact['artifact_id']}") == b"a picture"


@pytest.mark.slow
def test_comparison_page_shows_the_studies_side_by_side(dashboard: str, studies: dict[str, int]):
    if not BROWSER or not DRIVER:
        absent("the comparison page needs chromium and chromium-driver")
    ids = ",".join(map(str, studies.values()))
    with open_browser(1400, 1000) as browser:
        browser.get(f"{dashboard}/dashboard/compare-studies?ids={ids}")
        legends = (f"Best Value of {name}" for name in studies)
        assert Pages(browser, dashboard).shows(*legends, "0.3")
        browser.get(f"{dashboard}/dashboard/studies/{studies['s']}")
        assert Pages(browser, dashboard).shows("val/miou")


ROWS = """
SELECT study_name, number, state, 'params', param_name, param_value, distribution_json
    FROM trial_params JOIN trials USING (trial_id) JOIN studies USING (study_id)
UNION ALL SELECT study_name, number, state, 'value', objective, value, ''
    FROM trial_values JOIN trials USING (trial_id) JOIN studies USING (study_id)
UNION ALL SELECT study_name, number, state, 'epoch', step, intermediate_value, ''
    FROM trial_intermediate_values JOIN trials USING (trial_id) JOIN studies USING (study_id)
UNION ALL SELECT study_name, number, state, 'attribute', key, value_json, ''
    FROM trial_user_attributes JOIN trials USING (trial_id) JOIN studies USING (study_id)
UNION ALL SELECT study_name, 0, '', 'note', '', value_json, ''
    FROM study_system_attributes JOIN studies USING (study_id) WHERE key LIKE '%:note_str:%'
"""
"""All that optuna-dashboard shows of trials, without Optuna's ids."""


def rows(storage: Path) -> list[tuple[Any, ...]]:
    """The rows of a storage's file."""
    with closing(sqlite3.connect(storage / DATABASE)) as connection:
        return sorted(connection.execute(ROWS), key=str)


def test_deleted_file_is_written_again_with_the_trials_and_notes_of_two_families(tmp_path: Path):
    searched = {"s": "loss.ssim", "other": "loss.lovasz"}
    interval = {"low": 0.05, "high": 5.0, "log": True, "start": 0.4}
    studies = [
        finished_study(tmp_path, study, {"name": f"family-of-{study}", "search": {setting: interval}})
        for study, setting in searched.items()
    ]
    before = rows(tmp_path)
    (tmp_path / DATABASE).unlink()
    for location in studies:
        sync(location)
    assert rows(tmp_path) == before
    kinds = Counter((study, kind) for study, _, _, kind, *_ in before)
    for study in searched:
        counts = [kinds[study, kind] for kind in ("params", "note", "epoch", "value")]
        assert counts == [3, 3, 6, 2]  # a pruned trial has a value too
    assert {(row[0], row[4]) for row in before if row[3] == "params"} == set(searched.items())
