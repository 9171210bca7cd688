"""What a search maximises: another metric than the mIoU, or two of them."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from builders import make_epoch, make_trial
from fake_ledger import METADATA
from small_ledger import SPACE, START, start_search
from thin_street import FOREGROUND

from fgseg.config.errors import ConfigError
from fgseg.results import EpochResult
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord, pareto_front, rank_trials
from search.report.summary import summarise
from search.report.tables import front_table
from search.sampling.replay import replay
from search.sampling.study_sampler import StudySampler
from search.study.identity import check_identity
from search.study.objective import objective_name, value_of
from search.study.plan import make_plan
from search.tracking.run_schema import front_tag, parent_tags

TWO = ("val/iou/car", "val/iou/pole")


def epoch(car: float, pole: float) -> EpochResult:
    iou = {c.key: 0.5 for c in FOREGROUND}
    return make_epoch(1, 0.5, iou=iou | {"car": car, "pole": pole})


def search(folder: Path, sampler: str, trials: int = 7, objectives: tuple[str, ...] = TWO) -> Ledger:
    """A ledger as a fresh driver opens it."""
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s")
    settings = {"trials": trials, "sampler": sampler, "pruner": "none", "epochs": 1, "seed": 7}
    start_search(ledger, SPACE, START, objectives=objectives, **settings)
    return ledger


def train(ledger: Ledger) -> TrialRecord:
    """Train a trial whose two objectives contradict each other."""
    attempt = ledger.next_attempt()
    assert attempt is not None
    a, b = attempt.params["a"], attempt.params["b"]
    ledger.report(attempt.number, attempt.attempt, [epoch(car=0.9 - (a - 0.2) ** 2 - b / 9, pole=0.6 - (a - 0.8) ** 2)])
    ledger.complete(attempt.number, attempt.attempt)
    return ledger.trial(attempt.number)


@pytest.mark.parametrize(("sampler", "origin"), [("auto", "gp"), ("tpe", "tpe")])
def test_search_for_two_metrics_suggests_the_same_points_after_a_restart(tmp_path: Path, sampler: str, origin: str):
    ledger = search(tmp_path, sampler)
    for _ in range(6):
        train(ledger)
    again = train(search(tmp_path, sampler))  # by a fresh driver
    assert again.origin == origin
    settings = {"trials": 7, "sampler": sampler, "pruner": "none", "epochs": 1, "seed": 7}
    assert list(replay(ledger.trials(), StudySampler(SPACE, START, objectives=TWO, **settings))) == []
    other = StudySampler(SPACE, START, objectives=TWO[:1], **settings)
    changed = list(replay(ledger.trials(), other))
    assert len(changed) == 7
    assert all("objective was val/iou/car,val/iou/pole, is val/iou/car" in line for line in changed)


def test_value_is_the_first_metric_of_the_selected_epoch(tmp_path: Path):
    record = train(search(tmp_path, "random"))
    assert record.value == record.epochs[0].iou["car"]


def test_trial_without_a_value_of_the_second_metric_has_failed(tmp_path: Path):
    ledger = search(tmp_path, "random")
    ledger.next_attempt()
    ledger.report(0, 1, [epoch(car=0.5, pole=math.nan)])
    ledger.complete(0, 1)
    assert (ledger.trial(0).state, ledger.trial(0).reason) == (State.FAIL, "val/iou/pole of epoch 1 is nan")


def dominated(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return other != one and other[0] >= one[0] and other[1] >= one[1]


def test_pareto_front_is_that_of_the_definition():
    random = Random(0)
    points = [(random.randrange(6) / 10, random.randrange(6) / 10) for _ in range(25)]
    records = [make_trial(n, epochs=[epoch(*p)], value=p[0], selected=1) for n, p in enumerate(points)]
    front = pareto_front(rank_trials(records, changed_batch=False), TWO)
    expected = {p for p in points if not any(dominated(p, other) for other in points)}
    assert {points[record.number] for record in front} == expected
    assert len(front) == len(expected)  # of equal trials one
    assert all(one.value > other.value for one, other in itertools.pairwise(front))


def test_mlflow_names_both_metrics_and_the_front():
    metadata = METADATA.__class__(**vars(METADATA) | {"objectives": list(TWO)})
    records = [
        make_trial(n, epochs=[epoch(*p)], value=p[0], selected=1) for n, p in enumerate([(0.5, 0.1), (0.4, 0.2)])
    ]
    assert parent_tags(metadata)["fgseg.objective"] == "val/iou/car,val/iou/pole"
    assert front_tag(records, metadata) == {"fgseg.pareto_front": "0, 1"}
    assert front_tag(records, METADATA) == {}


def test_report_lists_the_pareto_front_with_both_objectives():
    points = [(0.9, 0.2), (0.8, 0.3), (0.7, 0.3), (0.6, 0.9)]
    records = [make_trial(n, epochs=[epoch(*p)], length=1, value=p[0], selected=1) for n, p in enumerate(points)]
    ledger = SimpleNamespace(metadata=replace(METADATA, objectives=list(TWO)), trials=lambda: records)
    table = front_table(summarise(ledger))
    assert table.columns == ["trial", "IoU of car", "IoU of pole"]
    assert [row.cells for row in table.rows] == [
        ["000", "0.9000", "0.2000"],
        ["001", "0.8000", "0.3000"],
        ["003", "0.6000", "0.9000"],
    ]
    ledger.metadata = replace(METADATA, objectives=list(TWO[:1]))
    assert front_table(summarise(ledger)).rows == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "val/iou/poles"}, "no metric 'val/iou/poles' of the validation; did you mean val/iou/pole?"),
        ({"objective": "val/miou,val/miou"}, "must be one metric or two different ones"),
        ({"objective": "val/miou,val/iou/car,val/iou/pole"}, "must be one metric or two different ones"),
        (
            {"objective": "val/miou,val/iou/car", "pruner": "asha"},
            "--pruner asha: trials with two objectives",
        ),
        (
            {"objective": "val/iou/car", "pruner": "wilcoxon"},
            "--pruner wilcoxon: compares the mIoU of frames, got --objective val/iou/car; choose another pruner",
        ),
    ],
)
def test_impossible_objectives_are_refused_in_one_line(tmp_path: Path, flags: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        make_plan("bas", "configs/quickstart.yaml", {}, {"storage": str(tmp_path), **flags}, None)


def test_study_keeps_its_objective_even_if_changes_are_accepted(tmp_path: Path):
    flags = {"storage": str(tmp_path), "accept_changes": True}
    first = make_plan("bas", "configs/quickstart.yaml", {}, flags, "s")
    other = make_plan("bas", "configs/quickstart.yaml", {}, flags | {"objective": "val/iou/pole"}, "s")
    before = {key: value for key, value in first.identity.items() if key != "objective"}  # of an earlier version
    check_identity(before, first.identity, first)
    with pytest.raises(ConfigError, match="--objective: got val/iou/pole, study s maximises val/miou"):
        check_identity(before, other.identity, other)


def test_names_and_values_of_metrics():
    names = ("val/miou", "val/iou/traffic_sign", "val/boundary/pole")
    assert [objective_name(n) for n in names] == ["mIoU", "IoU of traffic sign", "boundary IoU of pole"]
    assert value_of(epoch(0.4, math.nan), "val/iou/car") == 0.4
    assert math.isnan(value_of(epoch(0.4, math.nan), "val/iou/pole"))
    rims = make_epoch(boundary_iou={"pole": 0.3, "car": math.nan})
    assert value_of(rims, "val/boundary/pole") == 0.3
    assert math.isnan(value_of(rims, "val/boundary/car"))


def test_objective_of_boundaries_has_them_measured():
    plans = [
        make_plan("bas", "configs/quickstart.yaml", {}, {"objective": f"val/{kind}/pole"}, "s")
        for kind in ("boundary", "iou")
    ]
    assert [plan.settings.train.boundary_scores for plan in plans] == [True, False]
