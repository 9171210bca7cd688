"""A search keeps to its hours: mostly the driver as it is, on a simulated Ray and clock."""

import re
from pathlib import Path
from random import Random

import pytest
from builders import make_history
from small_ledger import EPOCHS, drive
from timed_search import TimedSearch

from fgseg.config.errors import ConfigError
from search.execution import time_budget
from search.execution.messages import TrialReport
from search.execution.time_budget import TimeBudget
from search.execution.trial_events import TrialEventHandler
from search.ledger.records import State
from search.ledger.study_metadata import StudyMetadata
from search.study.config import SearchConfig
from search.study.plan import make_plan

EPOCH_S = 10.0
HOUR_S = 3600
RECORDED_S = (
    22.5,
    19.6,
    21.1,
    19.7,
    18.8,
    18.5,
    34.0,
    25.3,
    28.9,
    26.7,
    23.7,
    22.9,
    21.2,
    23.9,
    29.7,
    22.3,
    24.4,
    33.5,
)
"""Durations of the epochs of a quickstart on two cores that ran other programs too; their deviation is 19 %."""

STUDIES = 4
"""Simulated quickstarts; a study takes a second or two.  With 20 the largest error is the one in search/README.md."""


def clock_s(text: str) -> int:
    """Seconds of m:ss."""
    minutes, seconds = text.split(":")
    return 60 * int(minutes) + int(seconds)


@pytest.mark.slow
def test_end_of_quickstarts_is_forecast_within_15_percent_after_two_trials():
    errors = []
    for seed in range(STUDIES):
        random = Random(seed)
        study = TimedSearch(lambda number, epoch, random=random: random.choice(RECORDED_S))
        took_s = study.run_once(trials=8, epochs=3)
        found = re.search(r"(\d+:\d\d)  forecast: 8 of 8 trials in about (\d+:\d\d)\n", study.output)
        assert found is not None
        errors.append((clock_s(found[1]) + clock_s(found[2])) / took_s - 1)
    assert max(map(abs, errors)) < 0.15


def test_trial_that_would_not_end_in_time_is_not_started():
    study = TimedSearch(lambda number, epoch: EPOCH_S)
    took_s = study.run_once(trials=8, epochs=3, max_hours=100 / HOUR_S)
    assert [record.state for record in study.records] == [State.COMPLETE] * 4  # two rounds end after 89 s
    assert "forecast: 4 of 8 trials in about 0:30 with --max-hours 0.0277778" in study.output
    assert (study.metadata.limit, took_s < 100) == ("max_hours", True)


def test_trials_that_become_slower_are_stopped_within_an_epoch_and_continued_by_a_run_with_more_time():
    study = TimedSearch(lambda number, epoch: EPOCH_S if number < 2 else 25.0)
    took_s = study.run_once(trials=4, epochs=3, max_hours=100 / HOUR_S)
    assert 100 <= took_s < 100 + 25
    assert [len(record.epochs) for record in study.records] == [3, 3, 2, 2]
    assert [record.state for record in study.records[2:]] == [State.RUNNING] * 2
    study.run_once(trials=4, epochs=3, max_hours=300 / HOUR_S)
    assert [(record.state, record.attempt) for record in study.records[2:]] == [(State.COMPLETE, 2)] * 2
    assert study.metadata.limit == ""
    assert len(study.metadata.runs) == 2


def test_run_whose_time_is_used_up_starts_nothing():
    study = TimedSearch(lambda number, epoch: EPOCH_S)
    study.run_once(trials=8, epochs=3, max_hours=100 / HOUR_S)
    assert study.run_once(trials=8, epochs=3, max_hours=100 / HOUR_S) < 1
    assert len(study.records) == 4


def test_gpu_hours_count_the_epochs_that_running_trials_still_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = drive(tmp_path, sampler="random", epochs=EPOCHS)
    ledger.record_run(StudyMetadata(settings={"train.epochs": EPOCHS}, budget=12), began=0.0)
    ledger.record_resources({"cpus": 1, "gpus": 0.5})
    monkeypatch.setattr(time_budget.time, "time", lambda: 1e6)  # wall-clock time has no limit
    two_trials_s = 0.5 * 2 * EPOCHS * EPOCH_S
    events = TrialEventHandler(ledger, EPOCHS, SearchConfig(max_gpu_hours=1.01 * two_trials_s / HOUR_S), [])
    first, second = events.next_attempt("a"), events.next_attempt("b")
    assert first is not None
    assert second is not None  # before the first epoch nothing is known
    events.on_report("a", TrialReport(0, 1, make_history(0.5)))
    assert events.next_attempt("c") is None
    assert not events.time.is_used_up()
    assert events.time.reason(EPOCHS).limit == "max_gpu_hours"
    events.on_report("b", TrialReport(1, 1, make_history(0.5)))
    assert TimeBudget(SearchConfig(max_gpu_hours=0.5 * 2 * EPOCH_S / HOUR_S), ledger).is_used_up()


def test_gpu_hours_of_trials_without_a_gpu_are_refused(tmp_path: Path):
    flags = {"storage": str(tmp_path), "gpus_per_trial": 0, "max_gpu_hours": 2}
    with pytest.raises(ConfigError, match="--max-gpu-hours: got 2, and trials have no GPU; give --max-hours"):
        make_plan("bas", "configs/quickstart.yaml", {}, flags, None)
