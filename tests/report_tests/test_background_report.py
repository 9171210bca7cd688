"""The report while a study runs: written by a process of its own, now and then, in nobody's way."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from child_targets import fail_to_write, write_forever, write_page

from search.report.background import ReportWriter
from search.study.location import find_location


@pytest.fixture
def published() -> dict[str, bytes]:
    return {}


@pytest.fixture
def writer(tmp_path: Path, published: dict[str, bytes], use_target) -> ReportWriter:
    (tmp_path / "s" / "report").mkdir(parents=True)
    use_target(write_page)
    writer = ReportWriter(find_location(tmp_path, "s"), published.__setitem__, every_s=1000)
    writer.begun -= 1000  # the run began a while ago
    return writer


@pytest.fixture
def use_target(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Let the child run another function."""
    return lambda target: monkeypatch.setattr("search.report.background.send_report", target)


def wait_for_report(writer: ReportWriter) -> None:
    end = time.monotonic() + 60
    while writer.child is not None and not writer.child.has_message() and time.monotonic() < end:
        time.sleep(0.05)


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_first_end_of_a_trial_starts_a_report_and_later_news_publish_it(writer: ReportWriter, published):
    writer.on_trial_update(changed=False)
    assert writer.child is None
    writer.on_trial_update(changed=True)
    assert writer.child is not None
    wait_for_report(writer)
    writer.on_trial_update(changed=False)
    assert published == {"report/report.html": b"x"}


def test_run_that_has_just_begun_starts_no_report(writer: ReportWriter):
    just_begun = ReportWriter(writer.location, writer.publish)
    just_begun.on_trial_update(changed=True)
    assert just_begun.child is None
    assert just_begun.stale


def test_next_report_waits_for_its_time_and_is_not_forgotten(writer: ReportWriter):
    writer.on_trial_update(changed=True)
    assert writer.child is not None
    wait_for_report(writer)
    writer.on_trial_update(changed=True)
    assert writer.child is None
    writer.every_s = 0
    writer.on_trial_update(changed=False)
    assert writer.child is not None
    writer.stop()


def test_news_cost_the_driver_milliseconds(writer: ReportWriter):
    began = time.perf_counter()
    writer.on_trial_update(changed=True)
    assert time.perf_counter() - began < 1  # a process is begun; measured: 3 ms
    writer.stop()


def test_end_of_a_run_writes_the_report_and_publishes_it(writer: ReportWriter, published):
    writer.on_trial_update(changed=True)
    assert writer.finish() == ""
    assert published == {"report/report.html": b"x"}


def test_run_without_news_writes_only_a_report_that_is_missing(writer: ReportWriter, published, use_target):
    assert writer.finish() == ""
    assert published == {"report/report.html": b"x"}
    published.clear()
    use_target(fail_to_write)
    assert writer.finish() == ""
    assert published == {"report/report.html": b"x"}  # again: an earlier run may have been killed before


def test_report_of_a_run_that_was_killed_is_written_again(writer: ReportWriter, use_target):
    assert writer.finish() == ""
    writer.is_current = lambda: False
    use_target(fail_to_write)
    assert writer.finish() == "error: the ledger is broken"


def test_failed_report_is_described_by_its_last_line_of_output(writer: ReportWriter, use_target):
    use_target(fail_to_write)
    assert writer.finish() == "error: the ledger is broken"


def test_signal_ends_the_last_report_at_once(writer: ReportWriter, published, use_target):
    use_target(write_forever)
    began = time.monotonic()
    assert writer.finish(lambda: True) == ""
    assert time.monotonic() - began < 10
    assert writer.child is None and published == {}


def test_report_that_cannot_be_started_stops_nothing(writer: ReportWriter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    writer.on_trial_update(changed=True)
    assert "nowhere" in writer.finish()


def test_stopping_leaves_no_process(writer: ReportWriter, use_target):
    use_target(write_forever)
    writer.on_trial_update(changed=True)
    assert len(children()) == 1
    writer.stop()
    assert children() == []


def test_report_while_trials_run_has_the_lowest_priority(writer: ReportWriter, use_target):
    use_target(write_forever)
    writer.on_trial_update(changed=True)
    (child,) = children()
    end = time.monotonic() + 60
    while child.nice() != 19 and time.monotonic() < end:
        time.sleep(0.05)
    assert child.nice() == 19
    writer.stop()
