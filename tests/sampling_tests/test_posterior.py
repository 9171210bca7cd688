"""The expected mIoU of finished trials, and where it is shown beside the observed one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from builders import make_trial
from fake_ledger import METADATA, FakeLedger

from search.ledger.records import TrialRecord, rank_trials
from search.report.summary import Summary, summarise
from search.report.tables import expected_note, trial_table
from search.sampling.posterior import MIN_TRIALS, posterior_of
from search.study.space import Range

RANGES = {"loss.ssim": Range(low=0.01, high=1.0, log=True, start=0.1, off_below=0.02)}
IDENTITY = {"space": {"name": "bas", "search": {key: r.model_dump() for key, r in RANGES.items()}}}
CENTRE, LUCKY = 0.1, 23


def trials(count: int = 24) -> list[TrialRecord]:
    """Trials on a hill with noise; the last one, far from the top, has the highest mIoU by chance."""
    generator = np.random.default_rng(0)
    points = 10 ** generator.uniform(-2, 0, count)
    points[-1] = 0.5
    values = 0.5 - 0.2 * np.square(np.log10(points / CENTRE)) + 0.01 * generator.standard_normal(count)
    values[-1] = max(values) + 0.001
    return [
        make_trial(number, value=float(value), params={"loss.ssim": float(point)})
        for number, (point, value) in enumerate(zip(points, values, strict=True))
    ]


def test_trial_that_is_best_by_chance_is_not_expected_to_be_the_best():
    ranked = rank_trials(trials(), changed_batch=False)
    posterior = posterior_of(ranked, RANGES)
    first = posterior.rank(ranked)[0]
    assert ranked[0].number == LUCKY
    assert abs(math.log10(first.params["loss.ssim"] / CENTRE)) < 0.3
    assert posterior.means[LUCKY] < 0.495 < (ranked[0].value or 0)
    assert 0.005 < posterior.noise_std < 0.03


def test_few_trials_or_none_within_the_ranges_stay_in_the_observed_order():
    few = rank_trials(trials(MIN_TRIALS - 1), changed_batch=False)
    assert posterior_of(few, RANGES).rank(few) == few
    ranked = rank_trials(trials(), changed_batch=False)
    narrow = {"loss.ssim": Range(low=5.0, high=6.0, start=5.0)}
    assert posterior_of(ranked, narrow).rank(ranked) == ranked
    assert posterior_of(ranked, {}).rank(ranked) == ranked


def test_setting_that_is_off_lies_at_the_low_end():
    values = [RANGES["loss.ssim"].share(value) for value in (0.0, 0.01, 0.1, 1.0)]
    assert values == pytest.approx([0, 0, 0.5, 1])


def summary_of(count: int) -> Summary:
    ledger = FakeLedger(*trials(count))
    ledger.metadata = METADATA.__class__(**vars(METADATA) | {"identity": IDENTITY})
    return summarise(ledger)


def test_report_shows_both_values_and_names_the_trial_with_the_highest_expected_one():
    summary = summary_of(24)
    table = trial_table(summary)
    assert table.columns[3:5] == ["mIoU", "expected mIoU"]
    assert table.rows[LUCKY].cells[4] == f"{summary.posterior.means[LUCKY]:.4f}"
    assert summary.best is not None and summary.best.number == LUCKY
    assert summary.expected_best is not None
    renamed = replace(summary, objectives=("val/iou/pole",))
    assert trial_table(renamed).columns[4] == "expected IoU of pole"
    note = expected_note(summary)
    assert note.startswith(f"Highest expected mIoU: trial {summary.expected_best.number:03d} has 0.")
    assert f"; the best trial has {summary.posterior.means[LUCKY]:.4f}; " in note


def test_report_of_few_trials_shows_the_observed_value_alone():
    summary = summary_of(4)
    assert "expected mIoU" not in trial_table(summary).columns
    assert expected_note(summary) == ""
