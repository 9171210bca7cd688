"""The tracker's thread and its surroundings: outages, frozen servers, half-made databases, credentials."""

import gc
import logging
import os
import threading
import time
from pathlib import Path

import pytest
from builders import make_trial
from fake_ledger import METADATA, FakeLedger
from waiting import wait_for

from search.study.location import StudyLocation, public_address
from search.tracking import tracker as background
from search.tracking.client import ENVIRONMENT, TrackingError, create_database
from search.tracking.run_schema import Phase
from search.tracking.sync import reconcile
from search.tracking.tracker import BackgroundWriter, Tracker

CLOSED_PORT = "http://bob:hunter2@127.0.0.1:9"
"""The discard port, on which nothing listens."""
NOWHERE = StudyLocation("/nowhere", METADATA.study, CLOSED_PORT)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY_S", 0.01)


class FlakyWriter:
    """Fails as often as it is told, then notes what it was asked to write."""

    def __init__(self, failures: int):
        self.failures = failures
        self.calls: list[object] = []

    def write_all(self, phase: Phase) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route")
        self.calls.append(phase)

    def write_changes(self, numbers: set[int]) -> None:
        self.calls.append(numbers)

    def write_file(self, name: str, data: bytes) -> None:
        self.calls.append(name)


def test_an_outage_blocks_neither_notify_nor_stop(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(FakeLedger(make_trial(0)), NOWHERE, METADATA)
    tracker.start()
    began = time.monotonic()
    for _ in range(100):
        tracker.notify(0)
    assert time.monotonic() - began < 0.1  # 1 ms each; measured: 2 microseconds
    assert not tracker.stop(20)
    assert time.monotonic() - began < 5  # three more refusals, 0.01 s apart
    (warning,) = caplog.records
    assert (warning.name, warning.levelno) == ("search.tracking.tracker", logging.WARNING)
    assert "hunter2" not in warning.getMessage()


def test_a_server_that_never_answers_holds_stop_up_no_longer_than_its_limit() -> None:
    answer = threading.Event()

    def connect() -> FlakyWriter:
        answer.wait(20)
        return FlakyWriter(failures=0)

    writer = BackgroundWriter(connect, lambda error: None)
    writer.start()
    began = time.monotonic()
    assert not writer.stop(0.2)
    assert time.monotonic() - began < 2
    answer.set()


def test_after_an_outage_everything_is_written_and_no_file_is_forgotten() -> None:
    flaky = FlakyWriter(failures=4)
    errors: list[Exception] = []
    writer = BackgroundWriter(lambda: flaky, errors.append)
    writer.publish("report.md", b"")
    writer.start()
    deadline = time.monotonic() + 10
    while not flaky.calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer.stop(10)
    assert flaky.calls == ["running", "report.md", "finished"]
    assert len(errors) == 4


@pytest.mark.parametrize("failures", [0, 10**9])
def test_a_mirror_that_is_another_drivers_is_left_as_it_is(failures: int) -> None:
    flaky, failed = FlakyWriter(failures), threading.Event()
    writer = BackgroundWriter(lambda: flaky, lambda error: failed.set())
    writer.start()
    deadline = time.monotonic() + 10
    while not (flaky.calls or failed.is_set()) and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.abandon()
    while writer.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not writer.running
    assert flaky.calls == ([] if failures else ["running"])


def test_a_server_that_is_back_when_the_study_ends_gets_everything() -> None:
    flaky = FlakyWriter(failures=10**9)
    failed = threading.Semaphore(0)
    writer = BackgroundWriter(lambda: flaky, lambda error: failed.release())
    writer.start()
    assert all(failed.acquire(timeout=10) for _ in range(background.LAST_TRIES + 1))
    flaky.failures = 0
    assert writer.stop(10)
    assert flaky.calls[-1] == "finished"


def test_reconcile_tells_a_fault_in_one_line_without_credentials() -> None:
    with pytest.raises(TrackingError) as caught:
        reconcile(FakeLedger(), NOWHERE, METADATA)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("MLflow at http://***@127.0.0.1:9: ConnectionRefusedError")


def test_a_database_half_made_by_a_killed_process_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"

    def write(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("whole")

    def fail(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_database(f"sqlite:///{path}", fail)
    assert not path.exists()
    create_database(f"sqlite:///{path}", write)
    assert path.read_text() == "whole"
    assert {p.name for p in path.parent.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}


def test_the_environment_is_as_before_once_the_tracker_has_stopped() -> None:
    gc.collect()  # trackers that other tests never stopped, which restore the variables when they are freed
    before = dict(os.environ)
    tracker = Tracker(FakeLedger(), NOWHERE, METADATA)
    tracker.start()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    tracker.stop(30)
    assert {key: os.environ.get(key) for key in ENVIRONMENT} == {key: before.get(key) for key in ENVIRONMENT}


def test_every_variable_that_is_set_is_one_that_mlflow_reads() -> None:
    from mlflow import environment_variables

    assert [key for key in ENVIRONMENT if not hasattr(environment_variables, key)] == []


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ann:p@ss@host:5000/x", "https://***@host:5000/x"),
        ("postgresql://ann:secret@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://db/mlflow?user=ann&password=secret", "postgresql://db/mlflow?user=ann&password=***"),
        ("sqlite:////data/runs/mlflow.db", "sqlite:////data/runs/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_an_address_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert public_address(uri) == shown


class BusyWriter(FlakyWriter):
    """Computes for a while, and notes when."""

    def __init__(self) -> None:
        super().__init__(failures=0)
        self.spans: list[tuple[float, float]] = []

    def write_changes(self, numbers: set[int]) -> None:
        started, ends = time.monotonic(), time.thread_time() + 0.2
        while time.thread_time() < ends:
            pass
        self.spans.append((started, time.monotonic()))


def test_thread_rests_as_long_as_it_has_computed() -> None:
    busy = BusyWriter()
    writer = BackgroundWriter(lambda: busy, lambda error: None)
    writer.start()
    wait_for(lambda: busy.calls == ["running"])
    writer.notify(0)
    wait_for(lambda: len(busy.spans) == 1)
    writer.notify(1)
    wait_for(lambda: len(busy.spans) == 2)
    assert writer.stop(20)
    assert busy.spans[1][0] - busy.spans[0][1] >= 0.2
