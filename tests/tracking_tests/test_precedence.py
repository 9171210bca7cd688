"""Requests of the views wait while the driver handles an event."""

import threading
import time
from pathlib import Path

import pytest
from builders import make_trial
from fake_ledger import METADATA, FakeLedger

from search.study.location import StudyLocation
from search.tracking import precedence as module
from search.tracking.optuna_studies import OptunaStudyWriter
from search.tracking.precedence import PausingClient, Precedence
from search.tracking.run_writer import StudyRunWriter


def test_request_waits_for_the_end_of_the_event_and_for_no_other_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 60.0)
    precedence = Precedence()
    order: list[str] = []

    def send() -> None:
        precedence.pause()
        order.append("request")

    precedence.pause()  # there was no event yet
    with precedence:
        thread = threading.Thread(target=send)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("event")
    thread.join(60)
    assert order == ["event", "request"]


def test_request_waits_for_a_limited_time_beside_a_driver_that_is_always_busy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.01)
    precedence = Precedence()
    with precedence:
        began = time.monotonic()
        precedence.pause()
    assert 0.01 <= time.monotonic() - began < 30


def test_event_that_fails_leaves_no_request_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 600.0)
    precedence = Precedence()
    with pytest.raises(OSError, match="disk"), precedence:
        raise OSError("disk is full")
    precedence.pause()


def test_client_pauses_before_each_request_and_passes_its_arguments_on():
    calls: list[object] = []

    class Client:
        def log(self, run: str, *, text: str) -> str:
            calls.append((run, text))
            return "logged"

    client = PausingClient(Client(), lambda: calls.append("pause"))
    assert client.log("run", text="a") == "logged"
    assert calls == ["pause", ("run", "a")]


@pytest.mark.slow
@pytest.mark.parametrize("writer", [StudyRunWriter, OptunaStudyWriter])
def test_writers_pause_before_the_requests_of_a_trial(writer: type, tmp_path: Path):
    pauses: list[int] = []
    location = StudyLocation(str(tmp_path), "s", f"sqlite:///{tmp_path / 'mlflow.db'}")
    written = writer(FakeLedger(make_trial(0)), location, METADATA, lambda: pauses.append(1))
    before = len(pauses)
    written.write_all("running")
    assert len(pauses) - before >= 4
