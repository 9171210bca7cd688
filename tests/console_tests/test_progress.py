"""What a person sees while a search runs."""

import io
import re
import time
from dataclasses import replace

import pytest
from builders import make_epoch, make_trial
from rich.console import Console
from thin_street import FOREGROUND

from search.console.progress import Progress, event
from search.console.study_status import StudyStatus, clock, recent_pace
from search.console.trial_table import trial_table
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata

GOAL = StudyMetadata(budget=2, settings={"train.epochs": 5})
EPOCH = make_epoch(1, 0.25, iou={c.key: 0.25 for c in FOREGROUND}, loss=1.5, seconds=1.0, wall_time=1.0)
NEW = make_trial(3, "running", done=0, params={}, started=1.0, length=5)
BEGUN = replace(NEW, epochs=[EPOCH])
DONE = replace(BEGUN, state=State.COMPLETE, value=0.25, ended=2.0, selected=1)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (None, NEW, "started"),
        (NEW, BEGUN, "epoch 1/5  mIoU 0.2500"),
        (BEGUN, BEGUN, ""),
        (BEGUN, replace(BEGUN, attempt=2), "continued (attempt 2)"),
        (BEGUN, DONE, "finished  mIoU 0.2500"),
        (DONE, DONE, ""),
        (BEGUN, replace(BEGUN, state=State.PRUNED, reason="pruned at epoch 1"), "stopped early: pruned at epoch 1"),
        (BEGUN, replace(BEGUN, state=State.FAIL, reason="its process died"), "FAILED: its process died"),
    ],
)
def test_every_event_is_told_once(before: TrialRecord | None, now: TrialRecord, text: str):
    assert event(before, now, epochs=5) == text


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log_has_a_line_for_each_ended_trial_and_none_for_epochs():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), GOAL, [], "http://server") as progress:
        progress.on_attempt(NEW)
        progress.on_epoch(BEGUN)
        progress.on_attempt(replace(BEGUN, attempt=2))
        progress.on_trial_end(DONE)
    address, continued, ended = out.getvalue().splitlines()
    assert address == "MLflow: http://server"
    assert continued.startswith("0:00  trial 003  continued (attempt 2)  |  0/2 trials, about 0:0")
    assert ended.startswith("0:00  trial 003  finished  mIoU 0.2500  |  1/2 trials, best 0.2500 (trial 003), about 0:0")
    assert ended.endswith("  |  best by class: " + "  ".join(f"{c.name} 0.2500" for c in FOREGROUND))


def test_verbose_log_has_the_start_and_every_epoch():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), GOAL, [], "", verbose=True) as progress:
        progress.on_attempt(NEW)
        progress.on_epoch(BEGUN)
        progress.on_epoch(BEGUN)  # its test result
    _, started, epoch = out.getvalue().splitlines()
    assert started == "0:00  trial 003  started  |  0/2 trials, time left unknown yet"
    assert epoch.startswith("0:00  trial 003  epoch 1/5  mIoU 0.2500  |  0/2 trials, about 0:0")


def test_new_best_trial_is_shown_by_class_once():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), GOAL, [BEGUN], "") as progress:
        progress.on_trial_end(DONE)
        progress.on_trial_end(DONE)
        progress.on_trial_end(replace(DONE, number=4, value=0.2))
    assert out.getvalue().count("best by class: fence 0.2500  car 0.2500") == 1
    assert out.getvalue().count("finished") == 2


def test_log_has_a_summary_once_a_minute_while_trials_run_and_after_a_change():
    """Every half a second for four minutes, a trial runs in the second and the third one."""
    out, clock = io.StringIO(), Clock()
    with Progress(Console(file=out, width=200), GOAL, [], "", monotonic=clock) as progress:
        for half_seconds in range(2 * 240):
            clock.now = half_seconds / 2
            if clock.now == 100:
                progress.on_attempt(NEW)
                progress.on_epoch(BEGUN)
            if clock.now == 190:
                progress.on_trial_end(replace(BEGUN, state=State.FAIL, reason="broken"))
            progress.refresh()
    _, second, third, failed, *others = out.getvalue().splitlines()
    assert second == "2:00  1 running, 0/2 trials, about 18:00 left"  # nine epochs are missing
    assert third == "3:00  1 running, 0/2 trials, about 27:00 left"
    assert failed.startswith("3:10  trial 003  FAILED: broken")
    assert others == []


def test_summary_has_the_limits_of_the_time():
    out, clock, goal = io.StringIO(), Clock(), replace(GOAL, max_hours=2.0, runs=(time.time() - 1800,))
    with Progress(Console(file=out, width=200), goal, [], "", monotonic=clock) as progress:
        progress.on_attempt(NEW)
        clock.now = 60.0
        progress.refresh()
    assert re.search(
        r"1:00  1 running, 0/2 trials, .*; time used: 30:\d\d of 2:00:00 \(--max-hours 2\), 1:", out.getvalue()
    )


class Screen(io.StringIO):
    """The lines of a terminal that understands what rich sends: colours, erased lines, and the cursor's moves."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part == "\x1b[1A":
                self.row -= 1
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row == len(self.lines))
            elif part == "\r":
                self.column = 0
            elif part[0] != "\x1b":
                line = self.lines[self.row].ljust(self.column)
                self.column += len(part)
                self.lines[self.row] = line[: self.column - len(part)] + part + line[self.column :]
        return len(text)

    @property
    def shown(self) -> list[str]:
        """The lines that are not empty, without spaces at their ends."""
        return [line.rstrip() for line in self.lines if line.strip()]


def test_terminal_shows_the_running_trials_and_keeps_lines_in_order():
    screen, clock = Screen(), Clock()
    console = Console(file=screen, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    with Progress(console, GOAL, [DONE], "http://server", monotonic=clock) as progress:
        progress.on_attempt(replace(NEW, number=4))
        for clock.now in (1.0, 2.0):
            progress.refresh()
            print("a warning of a library")  # which does not know of the table
        progress.on_epoch(replace(BEGUN, number=4))
        clock.now = 3.0
        progress.refresh()
        during = screen.shown
        progress.on_trial_end(replace(DONE, number=4, value=0.2))
        progress.refresh()
    address, *warnings, summary, headings, trial, best, classes, more = during
    assert (address, warnings) == ("MLflow: http://server", ["a warning of a library"] * 2)
    assert summary.startswith("0:03  1/2 trials, best 0.2500 (trial 003), about ")
    assert headings.split() == ["trial", "epoch", "left", "val", "mIoU", "its", "best", "train", "loss", "images/s"]
    assert re.match(r" +004 +1/5 +\d:\d\d +0\.2500 +0\.2500 +1\.5000 +20\.0$", trial)
    assert re.match(r"best 003 +1/5 +0\.2500 +0\.2500 +1\.5000 +20\.0$", best)
    assert f"{classes} {more}".split()[:5] == ["best", "trial", "003", "fence", "0.2500"]
    after = [
        address,
        *warnings,
        "0:03  trial 004  finished  mIoU 0.2500",
        "0:03  2/2 trials, best 0.2500 (trial 003), about 0:00 left",
    ]
    assert [line for line in screen.shown if "forecast" not in line] == after


@pytest.mark.parametrize(
    ("width", "last"), [(60, "val mIoU"), (80, "images/s"), (130, "traffic light"), (200, "settings")]
)
def test_table_uses_the_width_of_the_terminal(width: int, last: str):
    """A running trial with long names of settings, and more running trials than lines."""
    params = {f"class_weights.traffic_light_{k}": 0.123 for k in range(9)}
    records = [DONE, *(replace(BEGUN, number=number, params=params) for number in (4, 5, 6))]
    console = Console(width=width)
    with console.capture() as shown:
        console.print(trial_table(StudyStatus(GOAL, records), width, now=1e9, most=2))
    headings, *lines = shown.get().splitlines()
    assert headings.rstrip().endswith(last)
    assert max(map(len, [headings, *lines])) <= width
    assert "and 1 more running trials" in [line.strip() for line in lines]
    assert ("…" in lines[0]) == (last == "settings")
    assert ("traffic light 0.2500" in shown.get()) == (width < 130)  # below the table


def test_trial_that_ended_early_counts_as_whole_for_the_time_left():
    pruned = replace(BEGUN, state=State.PRUNED, reason="pruned at epoch 1")
    status = StudyStatus(GOAL, [BEGUN])
    assert (status.epochs_done, status.seconds_left(pace=2.0)) == (1, 18.0)
    assert status.update(pruned) == BEGUN
    assert (status.epochs_done, status.seconds_left(pace=2.0)) == (5, 10.0)


def test_standing_kept_up_record_by_record_is_that_of_all_records_together():
    ends = [replace(DONE, number=n, value=v) for n, v in ((4, 0.3), (1, 0.2), (3, 0.3), (0, 0.1))]
    ends += [replace(BEGUN, number=2, state=State.FAIL, reason="broken", ended=2.0)]
    status = StudyStatus(GOAL, [])
    for done in range(len(ends)):
        status.update(replace(BEGUN, number=ends[done].number))
        for _ in range(2):  # told twice, counted once
            status.update(ends[done])
            assert vars(status) == vars(StudyStatus(GOAL, ends[: done + 1]))
    assert status.best is ends[2]  # the earliest of equals
    assert status.summary_line() == "5/2 trials, best 0.3000 (trial 003), 1 failed"


def test_pace_is_taken_from_the_latest_epochs_and_slows_while_one_is_long_in_coming():
    record = replace(BEGUN, epochs=[replace(EPOCH, epoch=k, wall_time=100.0 + 10 * k) for k in range(1, 5)])
    assert recent_pace([record], now=140.0) == 7.5
    assert recent_pace([record], now=170.0) == 15.0
    assert recent_pace([BEGUN], now=170.0) is None


def test_clock_shows_hours_only_where_there_are_any():
    assert (clock(65), clock(3661)) == ("1:05", "1:01:01")
