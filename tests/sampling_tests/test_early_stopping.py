"""Pruners of this project: a test over frames, and searches in two phases."""

from collections import Counter
from dataclasses import replace

import optuna
import pytest
from builders import make_epoch, make_trial

from fgseg.config.errors import ConfigError
from fgseg.results import EpochResult
from scripts.replay.scripted_search import ScriptedSearch, scripted_epoch
from search.ledger.records import State, best_trial
from search.ledger.trial_source import NewTrial
from search.sampling.frame_test import FrameTestPruner, frame_attribute
from search.sampling.replay import replay as replay_points
from search.sampling.screening import SCREENINGS, build_screening
from search.sampling.study_sampler import StudySampler
from search.study.config import SearchConfig
from search.study.objective import MIOU
from search.study.plan import TWO_PHASES, make_plan

SPACE = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "ab"}
EPOCHS = 8


def stops(own: list[float], reference: list[float], epoch: int = 2) -> bool:
    """Whether a trial with these frames is stopped by trial 0 with those."""
    study = optuna.create_study(direction="maximize", pruner=FrameTestPruner(first_epoch=2))
    for frames in (reference, own):
        trial = study.ask()
        trial.set_user_attr(frame_attribute(epoch), frames)
        trial.report(0.5, epoch)
    return trial.should_prune()


REFERENCE = [0.1 * frame for frame in range(10)]


def test_trial_whose_frames_are_nearly_all_worse_is_stopped():
    assert stops([value - 0.01 * (frame + 1) for frame, value in enumerate(REFERENCE)], REFERENCE)
    assert stops([value - 0.05 * (-1 if frame == 0 else frame) for frame, value in enumerate(REFERENCE)], REFERENCE)


@pytest.mark.parametrize(
    ("own", "reference"),
    [
        (REFERENCE, REFERENCE),
        ([value + 0.1 for value in REFERENCE], REFERENCE),
        ([value + (0.1, -0.1)[frame % 2] for frame, value in enumerate(REFERENCE)], REFERENCE),
        ([value - 0.1 for value in REFERENCE[:5]], REFERENCE[:5]),
        ([value - 0.1 for value in REFERENCE], [float("nan")] * 6 + REFERENCE[6:]),
        ([value - 0.1 for value in REFERENCE], []),
    ],
    ids=["equal", "better", "mixed", "few frames", "few frames with a class", "trial 0 is behind"],
)
def test_trial_goes_on_without_evidence(own: list[float], reference: list[float]):
    assert not stops(own, reference)


def test_no_trial_is_stopped_before_the_first_epoch_of_the_test():
    assert not stops([value - 0.1 for value in REFERENCE], REFERENCE, epoch=1)


def two_phase_search(pruner: str, trials: int) -> tuple[StudySampler, ScriptedSearch]:
    """A search whose best points are those with the largest `a`, and whose epochs do not change the order."""
    sampler = SearchConfig.model_validate({"pruner": pruner}).resolved_sampler
    source = StudySampler(
        SPACE, {"a": 0.3, "b": 0.5}, trials=trials, sampler=sampler, pruner=pruner, epochs=EPOCHS, seed=3
    )
    search = ScriptedSearch(source, EPOCHS)

    def curve(new: NewTrial) -> list[EpochResult]:
        last = new.context.get("schedule") or EPOCHS
        return [scripted_epoch(epoch, new.params["a"] * epoch / last) for epoch in range(1, last + 1)]

    search.run(curve)
    return source, search


@pytest.mark.parametrize(("pruner", "brief", "full"), [("first-epochs", 17, 2), ("short-full", 15, 4)])
def test_best_of_the_brief_trials_are_trained_again_in_full(pruner: str, brief: int, full: int):
    source, search = two_phase_search(pruner, trials=20)
    start, *first, second = search.records[0], *search.records[1 : brief + 1], search.records[brief + 1 :]
    assert (start.state, len(start.epochs), len(second)) == (State.COMPLETE, EPOCHS, full)
    assert {(r.state, len(r.epochs), r.schedule) for r in first} == {
        (State.PRUNED, EPOCHS // 4, EPOCHS // 4 if pruner == "short-full" else None)
    }
    assert {(r.state, len(r.epochs), r.schedule, r.origin) for r in second} == {
        (State.COMPLETE, EPOCHS, None, "finish")
    }
    ranked = sorted(first, key=lambda record: -record.params["a"])
    assert [r.params for r in second] == [r.params for r in ranked[:full]]
    assert best_trial(search.records, changed_batch=False) == second[0]
    assert list(replay_points(search.records, source)) == []


def test_second_phase_waits_for_the_first_and_a_larger_budget_opens_the_first_again():
    source, search = two_phase_search("first-epochs", trials=10)
    assert Counter(r.origin == "finish" for r in search.records) == {False: 9, True: 1}
    running = [*search.records[:8], replace(search.records[8], state=State.RUNNING, ended_seq=None)]
    source.begin()
    assert source.next_trial(running) is None and source.remaining(running) == 1
    source.budget = 30
    source.begin()
    assert source.next_trial(search.records).origin != "finish"


def test_hyperband_gives_a_trial_the_same_bracket_in_every_process():
    def decisions() -> list[bool]:
        study_source = StudySampler(
            SPACE, {"a": 0.3, "b": 0.5}, trials=12, sampler="random", pruner="hyperband", epochs=9, seed=3
        )
        search = ScriptedSearch(study_source, 9)
        search.run(lambda new: [scripted_epoch(epoch, new.params["a"]) for epoch in range(1, 10)])
        return [record.state is State.PRUNED for record in search.records]

    assert decisions() == decisions() and any(decisions())


def test_budget_too_small_for_two_phases_is_refused():
    assert set(TWO_PHASES) == set(SCREENINGS)
    with pytest.raises(ConfigError, match="--pruner: short-full needs at least 4 trials, got 3; raise --trials"):
        make_plan("bas", "configs/quickstart.yaml", {}, {"pruner": "short-full", "trials": 3}, None)


def test_two_phases_within_a_limit_of_time_are_refused():
    with pytest.raises(ConfigError, match="--pruner: first-epochs trains points in full at the end, for which a limit"):
        make_plan("bas", "configs/quickstart.yaml", {}, {"pruner": "first-epochs", "max_hours": 1.0}, None)
    flags = {"pruner": "first-epochs", "trials": 9, "confirm": 2}
    with pytest.raises(ConfigError, match=r"needs at least 4 trials besides the 6 of --confirm, got 3; raise --trials"):
        make_plan("bas", "configs/quickstart.yaml", {}, flags, None)


def test_points_to_finish_are_the_best_by_the_objective():
    first = [
        make_trial(n, "pruned", done=1, epochs=[make_epoch(1, miou, iou={"pole": pole})], origin="sobol")
        for n, (miou, pole) in enumerate([(0.6, 0.1), (0.5, 0.3), (0.4, 0.2)], start=1)
    ]
    best = {name: build_screening("first-epochs", 8).next_to_finish(first, name) for name in (MIOU, "val/iou/pole")}
    assert [record.number for record in best.values()] == [1, 2]


def test_short_trial_is_trained_with_a_whole_schedule_and_wilcoxon_records_frames():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {"pruner": "short-full"}, None)
    _, search = two_phase_search("short-full", trials=4)
    records = (replace(search.records[number], params={}) for number in (1, 3))
    short, full = (plan.trial_settings(record)["train.epochs"] for record in records)
    assert (short, full) == (EPOCHS // 4, plan.settings.train.epochs)
    assert not plan.settings.train.frame_scores
    assert make_plan("bas", "configs/quickstart.yaml", {}, {"pruner": "wilcoxon"}, None).settings.train.frame_scores
