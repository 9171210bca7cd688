"""The report while a study runs: written by a process of its own, now and then, in nobody's way."""

import sys
import time
from pathlib import Path

import pytest

from search.report.background import ReportWriter
from search.study.location import find_location

WRITE = (
    "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); (p / 'report.html').write_text('x')"
)


@pytest.fixture
def published() -> dict[str, bytes]:
    return {}


@pytest.fixture
def writer(tmp_path: Path, published: dict[str, bytes]) -> ReportWriter:
    (tmp_path / "s" / "report").mkdir(parents=True)
    (tmp_path / "s").mkdir(exist_ok=True)
    made = ReportWriter(find_location(tmp_path, "s"), published.__setitem__, every_s=1000)
    made.command = (sys.executable, "-c", WRITE, str(tmp_path / "s" / "report"))
    return made


def test_first_end_of_a_trial_starts_a_report_and_later_news_publish_it(writer: ReportWriter, published):
    writer.on_trial_update(changed=False)
    assert writer.process is None
    writer.on_trial_update(changed=True)
    assert writer.process is not None
    writer.process.wait(30)
    writer.on_trial_update(changed=False)
    assert published == {"report/report.html": b"x"}


def test_next_report_waits_for_its_time_and_is_not_forgotten(writer: ReportWriter):
    writer.on_trial_update(changed=True)
    assert writer.process is not None
    writer.process.wait(30)
    writer.on_trial_update(changed=True)
    assert writer.process is None
    writer.every_s = 0
    writer.on_trial_update(changed=False)
    assert writer.process is not None
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


def test_run_without_news_writes_only_a_report_that_is_missing(writer: ReportWriter, published):
    assert writer.finish() == ""
    assert published == {"report/report.html": b"x"}
    published.clear()
    assert writer.finish() == ""
    assert published == {}


def test_failed_report_is_told_by_its_last_words(writer: ReportWriter):
    writer.command = (
        sys.executable,
        "-c",
        "import sys; sys.exit('error: the ledger is broken')",
    )
    assert writer.finish() == "error: the ledger is broken"


def test_signal_ends_the_last_report_at_once(writer: ReportWriter, published):
    writer.command = (
        sys.executable,
        "-c",
        "import time; time.sleep(60)",
    )
    began = time.monotonic()
    assert writer.finish(lambda: True) == ""
    assert time.monotonic() - began < 10
    assert writer.process is None and published == {}


def test_report_that_cannot_even_be_begun_stops_nothing(writer: ReportWriter):
    writer.command = ("/nowhere/python",)
    writer.on_trial_update(changed=True)
    assert "nowhere" in writer.finish()


def test_stopping_leaves_no_process(writer: ReportWriter):
    writer.command = (
        sys.executable,
        "-c",
        "import time; time.sleep(60)",
    )
    writer.on_trial_update(changed=True)
    process = writer.process
    writer.stop()
    assert process is not None and process.returncode is not None
