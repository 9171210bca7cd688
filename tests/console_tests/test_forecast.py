"""The forecast of a study's end, and the time that it has used."""

from dataclasses import replace

import pytest
from builders import START, make_epoch, make_trial

from search.console.forecast import Forecast, forecast, forecast_line, time_lines
from search.ledger.records import TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.ledger.time_used import Pace, TimeUsed, read_pace, time_used

METADATA = StudyMetadata(budget=6, settings={"train.epochs": 3}, runs=(START,), resources={"gpus": 0.5})


def trial(number: int, started: float, done: int = 3) -> TrialRecord:
    """A trial of epochs of 10 s that began this many seconds after the study; complete after three."""
    epochs = [make_epoch(n, wall_time=START + started + 10 * n, seconds=10.0) for n in range(1, done + 1)]
    state = "complete" if done == 3 else "running"
    ended = START + started + 31 if done == 3 else None
    return make_trial(number, state, epochs=epochs, started=START + started, ended=ended)


TWO_AT_ONCE = [trial(0, 0), trial(1, 0), trial(2, 31, done=1), trial(3, 31, done=0)]


def test_each_trial_starts_when_a_place_is_free():
    found = forecast(METADATA, TWO_AT_ONCE, START + 45)
    # Trials 2 and 3 have 20 and 30 s left, 4 s and 14 s ago; after them trials 4 and 5 need 30 s each.
    assert found == Forecast(seconds_left=16 + 30, trials=6)
    assert forecast_line(METADATA, found) == "forecast: 6 of 6 trials in about 0:46"
    assert forecast(METADATA, TWO_AT_ONCE[1:], START + 45) is None  # one has ended


@pytest.mark.parametrize(
    ("limits", "trials"),
    [
        ({"max_hours": 95 / 3600}, 6),  # trials 4 and 5 end after 91 s
        ({"max_hours": 85 / 3600}, 4),
        ({"max_hours": 125 / 3600, "reserved": 2}, 6),
        ({"max_hours": 120 / 3600, "reserved": 2}, 4),
        ({"max_gpu_hours": 0.5 * 151 / 3600}, 5),  # the epochs of four trials take 120 s
        ({"max_gpu_hours": 0.5 * 151 / 3600, "reserved": 1}, 4),
    ],
)
def test_only_trials_that_fit_are_forecast(limits: dict[str, float], trials: int):
    metadata = replace(METADATA, **limits)
    found = forecast(metadata, TWO_AT_ONCE, START + 45)
    assert found is not None
    assert found.trials == trials
    cut = forecast_line(metadata, found)
    assert ("with --max" in cut) == (trials < 6)


def test_hours_are_those_of_every_run_up_to_its_last_event():
    later = [trial(0, 0), trial(1, 3600)]
    metadata = replace(METADATA, runs=(START, START + 3600, START + 9000))
    used = time_used(metadata, later)
    assert used.hours * 3600 == pytest.approx(31 + 31)
    assert used.gpu_hours * 3600 == pytest.approx(0.5 * 60)
    assert time_used(metadata, later, now=START + 9100).hours * 3600 == pytest.approx(31 + 31 + 100)
    assert time_used(StudyMetadata(), []) == TimeUsed(0.0, 0.0)


def test_start_of_a_process_is_not_part_of_the_pace():
    slow_start = replace(trial(0, 0), started=START - 26)
    assert read_pace([slow_start]) == Pace(10.0, 0.0)
    assert read_pace([slow_start, trial(1, 31)]) == Pace(10.0, 1.0)
    assert read_pace([trial(0, 0, done=0)]) is None


def test_status_names_time_used_and_left():
    metadata = replace(METADATA, max_hours=2.0, max_gpu_hours=1.0)
    assert time_lines(metadata, TimeUsed(0.5, 1.5)) == [
        "time used: 30:00 of 2:00:00 (--max-hours 2), 1:30:00 left",
        "GPU time used: 1:30:00 of 1:00:00 (--max-gpu-hours 1), 0:00 left",
    ]
    assert time_lines(StudyMetadata(), TimeUsed(0.5, 0.0)) == ["time used: 30:00"]
