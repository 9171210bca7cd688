"""Faults of real processes: whatever dies, the same command continues, and the books are right."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import absent
from real_search import Driver, clean, replayed, trials

from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.study.location import find_location
from search.tracking.sync import sync

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def killed(start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Driver, list[TrialRecord]]:
    """A study whose driver was killed in an epoch, whose newest checkpoint was then damaged, and which then moved.

    Gives its new storage, the run that continued it to the end, and what the ledger held after the kill.
    """
    old = tmp_path_factory.mktemp("killed") / "old"
    driver = start(old, "--trials", "3", command=replayed)
    driver.wait_for(r"trial 000  epoch 3/4")
    driver.kill()
    held = trials(old)
    newest = max((old / "small" / "trials" / "0").glob("model-*"))
    newest.write_bytes(newest.read_bytes()[:-10])
    new = tmp_path_factory.mktemp("moved") / "new"
    shutil.move(old, new)
    again = start(new, "--trials", "3", command=replayed)
    assert again.finish() == 0, again.output
    return new, again, held


def test_killed_driver_is_continued_by_the_same_command(killed):
    storage, _, held = killed
    assert [t.state for t in held if t.number == 0] == [State.RUNNING]
    done = trials(storage)
    assert [(t.number, t.state) for t in done] == [(n, State.COMPLETE) for n in range(3)]
    assert done[0].attempt == 2
    assert done[0].params == held[0].params


def test_epochs_before_the_kill_are_not_done_again(killed):
    storage, _, held = killed
    done = trials(storage)
    for before in held:
        assert [e.to_json() for e in done[before.number].epochs[: len(before.epochs)]] == [
            e.to_json() for e in before.epochs
        ]


def test_damaged_checkpoint_gives_way_to_the_one_before_and_the_run_says_so(killed):
    _, again, _ = killed
    assert "using the previous one" in again.output


def test_study_that_was_killed_damaged_and_moved_passes_the_audit(killed):
    assert audit(killed[0], "small") == []


def test_finished_study_is_extended_and_the_first_trials_stay(killed, start):
    storage, _, _ = killed
    before = trials(storage)
    more = start(storage, "--trials", "4", command=replayed)
    assert more.finish() == 0, more.output
    after = trials(storage)
    assert len(after) == 4
    assert [t.value for t in after[:3]] == [t.value for t in before]
    clean(storage)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study that is interrupted again and again, each time by a run that continues it."""
    return tmp_path_factory.mktemp("interrupted") / "runs"


@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGINT, 130, r"trial 000  epoch 1/4"),
        (signal.SIGTERM, 143, r"trial 000  epoch [234]/4"),
        (signal.SIGTERM, 143, r"2/2 trials"),
    ],
)
def test_interrupted_run_ends_in_time_and_can_be_continued(
    start, interrupted: Path, number: signal.Signals, code: int, moment: str
):
    driver = start(interrupted, "--trials", "2", command=replayed)
    driver.wait_for(moment)
    while moment == "2/2 trials" and driver.processes("/raylet"):
        time.sleep(0.02)  # until Ray has ended, which takes the signal's handler away; much is still to be written then
    ended, seconds = driver.stop(number)
    assert ended == code, driver.output
    assert seconds < 30  # 10 on an idle machine (search/README.md); here other tests run beside it
    assert "continue: python -m search.run --space bas_cp" in driver.output
    assert "Traceback" not in driver.output
    clean(interrupted, interrupted=True)


def test_study_that_was_interrupted_thrice_is_finished_by_the_same_command(start, interrupted: Path):
    again = start(interrupted, "--trials", "2", command=replayed)
    assert again.finish() == 0, again.output
    assert [t.state for t in trials(interrupted)] == [State.COMPLETE] * 2
    clean(interrupted)


def test_mlflow_server_that_never_answers_costs_a_warning_only(start, tmp_path: Path):
    storage = tmp_path / "runs"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = start(storage, "--trials", "1", "--tracking-uri", f"http://127.0.0.1:{port}", command=replayed)
    assert driver.finish() == 0, driver.output
    assert "search.sync" in driver.output
    sync(find_location(storage, "small"))
    clean(storage)


def test_full_disk_stops_the_run_with_one_line_and_it_continues_once_there_is_room(start, tmp_path: Path):
    storage, ballast = tmp_path / "small-disk", tmp_path / "small-disk" / "ballast"
    storage.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(storage)], capture_output=True)
    if mounted.returncode:
        absent("only root may mount a small disk")
    try:
        driver = start(storage, "--trials", "2", "--max-concurrent", "1", command=replayed)
        driver.wait_for(r"trial 000  epoch 1/4")
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"0" * 4096)
        assert driver.finish() == 1, driver.output
        assert "Traceback" not in driver.output
        assert any(text in driver.output for text in ("No space left on device", "disk is full", "disk I/O error"))
        ballast.unlink()
        again = start(storage, "--trials", "2", "--max-concurrent", "1", command=replayed)
        assert again.finish() == 0, again.output
        clean(storage)
    finally:
        time.sleep(1)
        subprocess.run(["umount", "-l", str(storage)], check=True)


def test_data_folder_that_disappears_stops_the_run_after_some_failures(start, tmp_path: Path):
    from small_data import write_cityscapes

    root = write_cityscapes(tmp_path / "city")
    storage = tmp_path / "runs"
    sets = [
        "data.reader=cityscapes",
        f"data.root={root}",
        "data.train=6",
        "data.val=3",
        "data.test=3",
        "data.height=40",
    ]
    arguments = [part for s in [*sets, "data.width=80"] for part in ("--set", s)]
    budget = ("--trials", "9", "--max-concurrent", "1", "--max-failed-trials", "2")
    driver = start(storage, *budget, *arguments, command=replayed)
    driver.wait_for(r"trial 000  epoch 1/4")
    shutil.rmtree(root)
    assert driver.finish() == 1, driver.output
    assert "2 trials failed in a row" in driver.output
    states = [t.state for t in trials(storage)]
    assert states[-2:] == [State.FAIL, State.FAIL]
    assert len(states) < 9


def test_changed_settings_are_refused_and_recorded_where_accepted(killed, start):
    storage, _, _ = killed
    refused = start(storage, "--trials", "3", "--set", "train.lr=2e-3")
    assert refused.finish() == 2
    assert "settings.train.lr: 0.001 there, 0.002 now" in refused.output
    accepted = start(storage, "--trials", "3", "--set", "train.lr=2e-3", "--accept-changes", command=replayed)
    assert accepted.finish() == 0, accepted.output
    assert Ledger(f"sqlite:///{storage}/small/study.db", "small").metadata.identity["settings"]["train.lr"] == 0.002
