"""What a person sees while a search runs."""

import io
from dataclasses import replace

import pytest
from builders import make_epoch, make_trial
from rich.console import Console
from thin_street import FOREGROUND

from search.console.progress import Progress, event
from search.console.study_status import StudyStatus, clock, recent_pace
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata

GOAL = StudyMetadata(budget=2, settings={"train.epochs": 5})
EPOCH = make_epoch(1, 0.25, iou={c.key: 0.25 for c in FOREGROUND}, loss=1.5, seconds=1.0, wall_time=1.0)
NEW = make_trial(3, "running", done=0, params={}, started=1.0)
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


def test_plain_lines_tell_where_to_look_the_standing_and_the_time_left():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), GOAL, [], "http://server") as progress:
        progress.on_attempt(NEW)
        progress.on_epoch(BEGUN)
    lines = out.getvalue().splitlines()
    assert lines[0] == "look: http://server"
    assert "trial 003  started  |  0/2 trials, time left unknown yet" in lines[1]
    assert "trial 003  epoch 1/5  mIoU 0.2500  |  0/2 trials, about 0:0" in lines[2]


def test_plain_lines_tell_a_new_best_trial_class_by_class_once():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), GOAL, [BEGUN], "http://server") as progress:
        progress.on_trial_end(DONE)
        progress.on_epoch(replace(DONE, number=4, value=0.2))
    assert out.getvalue().count("best trial 003  fence 0.2500  car 0.2500") == 1
    assert "best trial 004" not in out.getvalue()


def test_terminal_shows_the_running_trials_the_best_by_class_and_where_to_look():
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100), GOAL, [DONE], "http://server") as progress:
        progress.on_epoch(replace(BEGUN, number=4))
    for text in ("val mIoU", "0.2500", "best trial", "traffic light", "look: http://server"):
        assert text in out.getvalue()


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
