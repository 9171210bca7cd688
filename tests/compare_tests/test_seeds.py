"""A comparison prints its power beforehand, and adds seeds until its intervals are narrow enough."""

import argparse
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from thin_street import THIN_STREET

from fgseg.cli import DONE
from search.cli.signals import Signals
from search.compare import __main__ as command
from search.compare import runner, seeds
from search.compare.dry_run import comparison_plan, power_lines
from search.compare.plans import MAX_AUTO_SEEDS, plans_from, with_seeds
from search.compare.power import Noise
from search.compare.repeats import finished_repeats, missing_seeds
from search.compare.scores import Family, compare
from search.compare.seeds import powers
from search.execution import preflight
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.ledger.trial_source import FixedTrials
from search.study.plan import RepeatPlan

KEYS = tuple(c.key for c in THIN_STREET.foreground)
QUIET = Console(quiet=True)


def plans_of(storage: Path, count: int = 3, **search: object) -> list[RepeatPlan]:
    return plans_from(
        ["baseline", "bas"],
        studies=None,
        point="start",
        seeds=count,
        config="configs/quickstart.yaml",
        assignments={},
        search={"storage": str(storage), **search},
    )


def family(plan: RepeatPlan, records: Sequence[int]) -> Family:
    """Counts of a family whose IoU varies from seed to seed."""
    generator = np.random.default_rng(len(plan.space.name))
    rate = 0.6 + generator.normal(0, 0.02, (MAX_AUTO_SEEDS, 1, 1)) + generator.normal(0, 0.002, (MAX_AUTO_SEEDS, 30, 1))
    hits = np.round(1000 * rate[: len(records)]).repeat(7, -1)
    confusion = np.zeros((len(records), 30, 7, 7))
    confusion[..., range(7), range(7)] = hits
    confusion[..., range(7), [1, 2, 3, 4, 5, 6, 0]] = 1000 - hits
    boundary = np.stack([hits, np.full_like(hits, 1000.0)], -1)
    return Family(plan.space.name, plan.space.title, plan.study, {}, KEYS[-6:], confusion, boundary)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """All planned repeats have finished."""
    monkeypatch.setattr(seeds, "trials_of", lambda plan: [1])
    monkeypatch.setattr(seeds, "finished_repeats", lambda plan: {seed: seed for seed in range(len(plan.repeats))})
    monkeypatch.setattr(seeds, "family", family)


def test_power_is_printed_from_the_finished_repeats(tmp_path: Path, finished: None):
    found = comparison_plan(plans_of(tmp_path, 10), "n", "start")
    noise, *lines = power_lines(found)
    deviation = re.fullmatch(r"noise: standard deviation (0\.\d{4}) of a difference in mIoU between seeds", noise)
    assert deviation is not None
    assert 0.01 < float(deviation[1]) < 0.04
    needed = [
        int(m[1])
        for line in lines
        if (m := re.fullmatch(r"power: a difference of 0\.\d+ needs (\d+) seeds .*; 10 find it with .* 0\.\d\d", line))
    ]
    assert len(needed) == 3
    assert needed == sorted(needed, reverse=True) == [one.seeds for one in found.power]
    assert powers(Noise(0.01, 0.0, 30), planned=1)[0].probability is None


def test_power_without_finished_repeats_names_what_to_do(tmp_path: Path):
    (line,) = power_lines(comparison_plan(plans_of(tmp_path), "n", "start"))
    assert line == (
        "power: needs two families with two finished seeds in common, and two test frames; begin with --seeds 2"
    )


def test_seeds_are_added_until_the_intervals_are_narrow_enough(tmp_path: Path, finished: None):
    plans = plans_of(tmp_path)
    widths = {}
    for count in (3, 10):
        families = [family(plan, range(count)) for plan in plans]
        widths[count] = seeds.widest(compare(families, range(count)))
    assert widths[10] < widths[3]
    assert seeds.next_seeds(plans, 0.99 * widths[3], QUIET) == 4
    assert seeds.next_seeds(plans, 1.01 * widths[3], QUIET) is None
    assert seeds.next_seeds([with_seeds(plan, MAX_AUTO_SEEDS) for plan in plans], 1e-9, QUIET) is None


def test_no_seed_is_added_where_one_has_not_finished(tmp_path: Path, finished: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "finished_repeats", lambda plan: {0: 0, 1: 1})
    assert seeds.next_seeds(plans_of(tmp_path), 1e-9, QUIET) is None


def test_comparison_trains_each_number_of_seeds_and_presents_the_last(tmp_path: Path, monkeypatch):
    trained, shown = [], []
    monkeypatch.setattr(preflight, "preflight", lambda plan, console: {})
    monkeypatch.setattr(runner, "train_repeats", lambda plans, *rest: trained.append(len(plans[0].repeats)) or DONE)
    monkeypatch.setattr(runner, "next_seeds", lambda plans, precision, console: 4 if len(trained) < 2 else None)
    monkeypatch.setattr(runner, "present_comparison", lambda plans, *rest: shown.append(len(plans[1].repeats)) or DONE)
    assert runner.run_comparison(plans_of(tmp_path), "n", "start", Signals(), precision=0.01) == DONE
    assert (trained, shown) == ([3, 4], [4])


def test_signal_after_the_last_training_ends_the_comparison_with_its_code(tmp_path: Path, monkeypatch):
    signals = Signals()

    def interrupted(*arguments: object) -> int:
        signals.gentle = True  # as `run_study` sets it while a study is open
        signals.handle(signal.SIGTERM, None)
        return DONE

    monkeypatch.setattr(preflight, "preflight", lambda plan, console: {})
    monkeypatch.setattr(runner, "train_repeats", interrupted)
    assert runner.run_comparison(plans_of(tmp_path), "n", "start", signals) == 143


def test_family_for_which_no_time_was_left_is_left_out(tmp_path: Path):
    plan = plans_of(tmp_path)[1]
    finished = finished_repeats(plan)
    assert finished == {}
    assert missing_seeds(plan, finished) == [f"{plan.space.title}: no seed was trained, so that the family is left out"]
    assert seeds.next_seeds(plans_of(tmp_path), 1e-9, QUIET) is None


def test_families_share_the_hours_of_a_comparison(tmp_path: Path):
    plans = plans_of(tmp_path, max_hours=2.0)
    other = plans[1]
    Path(other.location.folder).mkdir(parents=True)
    ledger = Ledger.create(other.location.ledger_url, other.study)
    ledger.record_run(StudyMetadata(settings={"train.epochs": 1}), began=time.time() - 1800)
    ledger.start(FixedTrials(other.repeats), epochs=1, select="last")
    ledger.next_attempt()  # half an hour later
    left = runner.time_left(plans[0], plans)
    assert left == {"max_hours": pytest.approx(1.5, abs=0.01)}  # the test takes less than 36 s
    assert runner.time_left(other, plans) == {"max_hours": 2.0}


def test_seeds_are_a_number_or_auto():
    assert [command.seed_count(text) for text in ("5", "auto")] == [5, None]
    with pytest.raises(argparse.ArgumentTypeError, match="got 'many', must be a whole number or auto"):
        command.seed_count("many")
    assert command.parse(["--spaces", "bas", "--seeds", "auto"]).seeds is None
