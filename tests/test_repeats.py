"""Repeats: fixed points with seeds of their own, in a study that no sampler sees."""

from dataclasses import replace
from pathlib import Path

import pytest

from fgseg.config import ConfigError
from search.driver import budget
from search.ledger import Ledger
from search.plan import make_plan
from search.record import Ask, Kind, Repeat

POINT = {"loss.ssim": 0.4, "train.accumulation": 2}


def begin(folder: Path, repeats: list[Repeat]) -> Ledger:
    """A ledger of repeats as a fresh driver opens it."""
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s-repeats")
    ledger.start_repeats(repeats, epochs=1, select="last")
    return ledger


def seeds(count: int, **changes: float) -> list[Repeat]:
    return [Repeat(POINT | changes, seed) for seed in range(count)]


def test_repeats_are_handed_out_in_order_each_with_its_point_and_its_seed(tmp_path: Path):
    ledger = begin(tmp_path, seeds(2))
    assert [ledger.ask() for _ in range(3)] == [Ask(0, 1, POINT, repeat=0), Ask(1, 1, POINT, repeat=1), None]
    assert [(r.kind, r.params, r.seed) for r in ledger.trials()] == [(Kind.REPEAT, POINT, s) for s in (0, 1)]


def test_open_repeat_is_continued_under_its_own_number(tmp_path: Path):
    begin(tmp_path, seeds(2)).ask()
    assert begin(tmp_path, seeds(2)).ask() == Ask(0, 2, POINT, repeat=0)


def test_more_seeds_and_another_point_extend_the_study(tmp_path: Path):
    first = begin(tmp_path, seeds(1))
    first.fail(first.ask().number, 1, "the loss is nan")
    again = begin(tmp_path, [*seeds(2), *seeds(1, **{"loss.ssim": 0.5})])
    assert [(a.number, a.params["loss.ssim"], a.seed) for a in iter(again.ask, None)] == [(1, 0.4, 1), (2, 0.5, 0)]


def test_nothing_is_left_once_every_repeat_has_ended_however(tmp_path: Path):
    ledger = begin(tmp_path, seeds(1))
    assert not ledger.nothing_left()
    ledger.fail(ledger.ask().number, 1, "the loss is nan")
    assert begin(tmp_path, seeds(1)).nothing_left()


def test_budget_of_repeats_counts_those_that_the_study_has_and_those_that_it_lacks(tmp_path: Path):
    begin(tmp_path, seeds(2)).ask()
    plan = replace(make_plan("bas", "configs/quickstart.yaml", {}, {}, None), repeats=tuple(seeds(3)))
    assert budget(plan, begin(tmp_path, seeds(3))) == 3
    assert budget(replace(plan, repeats=tuple(seeds(1, **{"loss.ssim": 9}))), begin(tmp_path, [])) == 2


def test_only_repeats_read_the_test_split():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {}, None)
    assert plan.splits == ("train", "val")
    assert replace(plan, repeats=tuple(seeds(1))).splits == ("train", "val", "test")


def test_search_cannot_take_a_name_that_is_kept_for_repeats():
    with pytest.raises(ConfigError, match=r"--study: got 'a-repeats', names that end in -repeats are kept"):
        make_plan("bas", "configs/quickstart.yaml", {}, {}, "a-repeats")
