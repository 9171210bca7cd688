"""The best points of a search are trained again with other seeds; the driver as it is, on a simulated Ray and clock."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from builders import make_epoch, make_trial
from rich.console import Console
from small_ledger import drive
from timed_search import TimedSearch

from fgseg.config.errors import ConfigError
from search.compare.confirmation import Candidate, best_points, select
from search.execution.messages import TrialJob
from search.ledger.study_metadata import Confirmation, Constraint, StudyMetadata
from search.status import study_view
from search.study.location import find_location
from search.study.plan import CONFIRM_SEED, make_plan

LUCKY, STEADY = (0.4, 0.6), (0.5, 0.51)
"""mIoU of the two best points of a search with two other seeds."""


def miou(job: TrialJob) -> float:
    """Rise with the number of a trial in the search; then alternate between the points of its repeats."""
    if "-confirmed" not in job.folder:
        return 0.5 + 0.01 * job.number
    return (LUCKY, STEADY)[job.number % 2][job.number // 2]


def test_repeats_within_the_budget_select_the_point_with_the_highest_lower_end():
    study = TimedSearch(lambda number, epoch: 10.0, miou)
    study.run_once(trials=8, epochs=1, confirm=2, confirm_seeds=2)
    assert len(study.jobs) == 8
    assert len(study.records) == 4
    repeats = [job for job in study.jobs if "-confirmed" in job.folder]
    assert [job.settings["train.seed"] - 42 - CONFIRM_SEED for job in repeats] == [0, 0, 1, 1]
    assert not any(job.test for job in study.jobs)  # the test split decides nothing
    found = study.metadata.confirmation
    assert found is not None
    assert (found.trial, found.ended, found.seeds) == (2, 4, 2)  # trial 3 has the highest value
    assert found.mean == pytest.approx(0.505)
    study.run_once(trials=8, epochs=1, confirm=2, confirm_seeds=2)
    assert len(study.jobs) == 8  # the same command trains nothing again


def test_time_is_kept_for_the_repeats():
    study = TimedSearch(lambda number, epoch: 10.0, miou)
    took_s = study.run_once(trials=20, epochs=3, confirm=2, confirm_seeds=2, max_hours=210 / 3600)
    assert len(study.records) < 16
    assert sum("-confirmed" in job.folder for job in study.jobs) == 4
    assert study.metadata.confirmation is not None
    assert took_s < 210 + 10


def test_confirmed_trial_is_the_best_until_another_one_ends(tmp_path: Path):
    ledger = drive(tmp_path, sampler="random")
    for value in (0.5, 0.7):
        attempt = ledger.next_attempt()
        assert attempt is not None
        ledger.report(attempt.number, 1, [make_epoch(1, value)])
        ledger.complete(attempt.number, 1)
    ledger.record_confirmation(Confirmation(trial=0, ended=2, mean=0.5, low=0.49, seeds=3))
    assert (best := ledger.best()) is not None
    assert best.number == 0
    console = Console(record=True, width=100, file=StringIO())
    console.print(study_view(ledger, find_location(tmp_path, "s"), 100))
    assert "best 0.5000 (trial 000)" in console.export_text()
    ledger.next_attempt()
    ledger.fail(2, 1, "a reason")
    assert (best := ledger.best()) is not None
    assert best.number == 1
    assert [record.number for record in best_points(ledger, 5)] == [1, 0]


def candidate(number: int, *mious: float, car: float = 0.5) -> Candidate:
    trials = []
    for seed, value in enumerate(mious):
        epoch = make_epoch(1, value)
        trials.append(make_trial(seed, epochs=[replace(epoch, iou=epoch.iou | {"car": car})], selected=1, repeat=seed))
    return Candidate(make_trial(number), trials)


def test_point_with_one_repeat_or_below_a_floor_is_not_selected_while_there_are_others():
    metadata = StudyMetadata(constraint=Constraint({"car": 0.45}))
    alone, low, allowed = candidate(0, 0.9), candidate(1, 0.8, 0.8, car=0.4), candidate(2, 0.5, 0.51)
    assert select([alone, low, allowed], metadata) is allowed
    assert select([alone, low], metadata) is low
    assert select([alone], metadata) is None


def test_repeats_that_leave_no_trials_to_the_search_are_refused(tmp_path: Path):
    flags = {"storage": str(tmp_path), "trials": 8, "confirm": 3}
    message = r"--confirm 3 --confirm-seeds 3: takes 9 of --trials 8; give --trials 12 or more"
    with pytest.raises(ConfigError, match=message):
        make_plan("bas", "configs/quickstart.yaml", {}, flags, None)
