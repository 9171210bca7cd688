"""What a person sees while a search runs."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fgseg.epoch import EpochResult
from search.progress import Progress, clock, event
from search.record import State, TrialRecord

EPOCH = EpochResult(1, 0.25, {}, [[1]], 1.5, {}, 20.0, 1.0, 1.0, 1)
NEW = TrialRecord(3, State.RUNNING, {}, 1, 0, [], None, None, 1.0, None)
BEGUN = replace(NEW, epochs=[EPOCH])
DONE = replace(BEGUN, state=State.COMPLETE, value=0.25, ended=2.0)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (None, NEW, "started"),
        (NEW, BEGUN, "epoch 1/5  mIoU 0.2500"),
        (BEGUN, BEGUN, ""),
        (BEGUN, replace(BEGUN, attempt=2), "continued (start number 2)"),
        (BEGUN, DONE, "finished  mIoU 0.2500"),
        (DONE, DONE, ""),
        (BEGUN, replace(BEGUN, state=State.PRUNED, reason="pruned at epoch 1"), "stopped early: pruned at epoch 1"),
        (BEGUN, replace(BEGUN, state=State.FAIL, reason="its process died"), "FAILED: its process died"),
    ],
)
def test_every_event_is_told_once(before: TrialRecord | None, now: TrialRecord, text: str):
    assert event(before, now, epochs=5) == text


def test_plain_lines_tell_the_standing_and_the_time_left():
    out = io.StringIO()
    with Progress(Console(file=out, width=200), trials=2, epochs=5, records=[]) as progress:
        progress.update(NEW)
        progress.update(BEGUN)
    lines = out.getvalue().splitlines()
    assert "trial 003  started  |  0/2 trials, time left unknown yet" in lines[0]
    assert "trial 003  epoch 1/5  mIoU 0.2500  |  0/2 trials, about 0:0" in lines[1]


def test_terminal_shows_a_table_of_the_running_trials():
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100), trials=2, epochs=5, records=[]) as progress:
        progress.update(BEGUN)
    assert "val mIoU" in out.getvalue()
    assert "0.2500" in out.getvalue()


def test_trial_that_ended_early_counts_as_whole_for_the_time_left():
    pruned = replace(BEGUN, state=State.PRUNED, reason="pruned at epoch 1")
    progress = Progress(Console(file=io.StringIO()), trials=4, epochs=5, records=[pruned])
    assert progress.epochs_done() == 5


def test_clock_shows_hours_only_where_there_are_any():
    assert (clock(65), clock(3661)) == ("1:05", "1:01:01")
