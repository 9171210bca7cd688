"""Repeats: fixed points with seeds of their own, in a study that no sampler sees."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kept_study import IDENTITY, SETTINGS, change, epoch
from thin_street import THIN_STREET

from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.config.errors import ConfigError
from fgseg.storage.store import LocalStore
from fgseg.training.test_evaluation import save_test_result
from search.audit.trials import audit
from search.compare.plans import repeat_plan
from search.execution.strategies import RepeatStrategy
from search.ledger.ledger import Ledger
from search.ledger.records import TrialAttempt
from search.ledger.study_metadata import StudyMetadata
from search.ledger.trial_source import FixedTrials
from search.study.location import StudyLocation, find_location
from search.study.plan import Repeat, make_plan
from search.tracking.run_reader import read_runs
from search.tracking.sync import sync
from search.tracking.trial_models import read_models

pytestmark = pytest.mark.slow

POINT = {"loss.ssim": 0.4, "train.accumulation": 2}


def begin(folder: Path, repeats: list[Repeat]) -> Ledger:
    """A ledger of repeats as a fresh driver opens it."""
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s-repeats")
    ledger.start(FixedTrials(repeats), epochs=1, select="last")
    return ledger


def seeds(count: int, **changes: float) -> list[Repeat]:
    return [Repeat(POINT | changes, seed) for seed in range(count)]


def test_repeats_are_handed_out_in_order_each_with_its_point_and_its_seed(tmp_path: Path):
    ledger = begin(tmp_path, seeds(2))
    assert [ledger.next_attempt() for _ in range(3)] == [
        TrialAttempt(0, 1, POINT, given_seed=0),
        TrialAttempt(1, 1, POINT, given_seed=1),
        None,
    ]
    assert [(r.repeat, r.params, r.seed) for r in ledger.trials()] == [(s, POINT, s) for s in (0, 1)]


def test_open_repeat_is_continued_under_its_own_number(tmp_path: Path):
    begin(tmp_path, seeds(2)).next_attempt()
    assert begin(tmp_path, seeds(2)).next_attempt() == TrialAttempt(0, 2, POINT, given_seed=0)


def test_more_seeds_and_another_point_extend_the_study(tmp_path: Path):
    first = begin(tmp_path, seeds(1))
    first.fail(first.next_attempt().number, 1, "the loss is nan")
    again = begin(tmp_path, [*seeds(2), *seeds(1, **{"loss.ssim": 0.5})])
    assert [(a.number, a.params["loss.ssim"], a.seed) for a in iter(again.next_attempt, None)] == [
        (1, 0.4, 1),
        (2, 0.5, 0),
    ]


def test_nothing_is_left_once_every_repeat_has_ended_however(tmp_path: Path):
    ledger = begin(tmp_path, seeds(1))
    assert not ledger.nothing_left()
    ledger.fail(ledger.next_attempt().number, 1, "the loss is nan")
    assert begin(tmp_path, seeds(1)).nothing_left()


def test_budget_of_repeats_counts_those_that_the_study_has_and_those_that_it_lacks(tmp_path: Path):
    begin(tmp_path, seeds(2)).next_attempt()
    plan = repeat_plan(make_plan("bas", "configs/quickstart.yaml", {}, {}, None), "start", seeds=3)
    three = replace(plan, repeats=tuple(seeds(3)))
    assert RepeatStrategy(three).budget(begin(tmp_path, seeds(3))) == 3
    other = replace(plan, repeats=tuple(seeds(1, **{"loss.ssim": 9})))
    assert RepeatStrategy(other).budget(begin(tmp_path, [])) == 2


def test_only_repeats_read_the_test_split():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {}, None)
    assert plan.splits == ("train", "val")
    assert repeat_plan(plan, "start", seeds=1).splits == ("train", "val", "test")


def test_search_cannot_take_a_name_that_is_kept_for_comparisons():
    for name in ("a-repeats", "comparison"):
        with pytest.raises(ConfigError, match=rf"--study: got '{name}', comparison and names that end in -repeats are"):
            make_plan("bas", "configs/quickstart.yaml", {}, {}, name)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study of two finished repeats, made without any training."""
    storage = tmp_path_factory.mktemp("original") / "runs"
    folder = storage / "s-repeats"
    folder.mkdir(parents=True)
    ledger = begin(folder, seeds(2))
    identity = {key: IDENTITY[key] for key in ("version", "data")} | {"settings": {"train.epochs": 1}}
    ledger.record_run(
        StudyMetadata("s-repeats", "bas", "BAS", "e", SETTINGS, identity=identity, budget=2, keep_checkpoints=2)
    )
    for ask in iter(ledger.next_attempt, None):
        store, history = LocalStore(folder / "trials" / str(ask.number)), [epoch(1, ask.number)]
        Checkpoints(store, 1).save({"weight": torch.zeros(3)}, {}, history, "last")
        confusion = torch.eye(7, dtype=torch.int64).repeat(4, 1, 1) + 1
        ledger.report(ask.number, 1, history)
        ledger.record_test(
            ask.number, 1, save_test_result(store, 1, 1, confusion, torch.full((4, 7, 2), 3), THIN_STREET)
        )
        ledger.complete(ask.number, 1)
    sync(find_location(storage, "s-repeats"))
    return storage


@pytest.fixture
def location(original: Path, tmp_path: Path) -> StudyLocation:
    """A copy of it to be broken."""
    shutil.copytree(original, tmp_path / "runs")
    return find_location(tmp_path / "runs", "s-repeats")


def test_finished_repeats_are_clean(location: StudyLocation):
    assert audit(location.storage, location.study) == []


def test_counts_that_were_altered_are_named(location: StudyLocation):
    (blob,) = Path(location.folder).glob("trials/1/counts-*.safetensors")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    (line,) = audit(location.storage, location.study)
    assert line.startswith("trial 1: its test result cannot be read: counts-000001.safetensors was altered")


def test_repeat_that_was_never_judged_is_named(location: StudyLocation):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_trials SET test = NULL WHERE number = 0")
    lines = audit(location.storage, location.study, tracking=False)
    assert lines == [
        "trial 0: COMPLETE without a result on the test split",
        "trial 0: its folder holds a test result that the ledger lacks",
    ]


def test_trial_of_a_search_that_saw_the_test_split_is_named(location: StudyLocation):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_trials SET repeat_seed = NULL WHERE number = 0")
    assert "trial 0: evaluated on the test split, which a search must not use" in audit(
        location.storage, location.study, tracking=False
    )


def test_mlflow_shows_what_the_test_split_said_once_however_often_it_is_sent(location: StudyLocation):
    sync(location)
    repeats = [
        run for run in read_runs(location.tracking_uri, location.study, "") if run.tags["fgseg.kind"] == "repeat"
    ]
    assert len(repeats) == 2
    for run in repeats:
        assert run.points["test/miou"] == run.points["test/thin_miou"] == [(1, pytest.approx(2 / 14))]
        assert run.points["test/boundary_iou/pole"] == [(1, 1.0)]
    kept, _ = models = read_models(location.tracking_uri, location.study, "")
    assert {model.number for model in models} == {0, 1}
    assert kept.metrics["test/miou"] == pytest.approx(2 / 14) and "val/miou" in kept.metrics
