"""`--warm-start`: the best points of other studies in the space of a search."""

from pathlib import Path

import pytest
from builders import make_history
from kept_study import IDENTITY, SETTINGS
from optuna.distributions import FloatDistribution
from small_ledger import start_search

from fgseg.config.errors import ConfigError
from search.execution.warm_start import warm_points
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.run import parse, plan_from
from search.study.identity import check_identity
from search.study.plan import Plan


def add_study(storage: Path, name: str, mious: list[float], point: dict[str, float]) -> Ledger:
    """A study whose trials all have the same point."""
    (storage / name).mkdir(parents=True)
    ledger = Ledger.create(f"sqlite:///{storage}/{name}/study.db", name)
    ledger.record_run(StudyMetadata(study=name, space="bas", settings=SETTINGS, identity=IDENTITY, budget=len(mious)))
    space = {key: FloatDistribution(0.0, 100.0) for key in point}
    start_search(ledger, space, point, trials=2, sampler="random", pruner="none", epochs=1, seed=7)
    for miou in mious:
        attempt = ledger.next_attempt()
        assert attempt is not None
        ledger.report(attempt.number, 1, make_history(miou))
        ledger.complete(attempt.number, 1)
    return ledger


def plan_for(storage: Path, *names: str) -> Plan:
    words = ["--space", "bas_cp", "--storage", str(storage), "--study", "mine"]
    return plan_from(parse([*words, *(["--warm-start", *names] if names else [])]))


def test_best_point_is_moved_into_the_space_and_completed_by_the_start_point(tmp_path: Path):
    add_study(tmp_path, "other", [0.5], {"loss.ssim": 50.0, "class_weights.pole": 3.0, "loss.lovasz": 1.0})
    plan = plan_for(tmp_path, "other")
    (point,) = warm_points(plan, {})
    assert point == plan.space.start | {"loss.ssim": 5.0, "class_weights.pole": 3.0}


def test_point_of_a_study_that_has_begun_stays_when_the_other_study_goes_on_or_is_gone(tmp_path: Path):
    plan = plan_for(tmp_path, "gone")
    recorded = plan.identity | {"warm_points": [{"loss.ssim": 0.3}]}
    assert warm_points(plan, recorded) == [{"loss.ssim": 0.3}]


def test_studies_to_start_from_belong_to_the_identity(tmp_path: Path):
    cold, warm = plan_for(tmp_path), plan_for(tmp_path, "other")
    assert "warm_start" not in cold.identity["space"]
    for recorded, now in ((cold, warm), (warm, cold)):
        with pytest.raises(ConfigError, match=r"space\.warm_start: .*--accept-changes"):
            check_identity(recorded.identity, now.identity, now)


@pytest.mark.parametrize(
    ("name", "mious", "key", "message"),
    [
        ("absent", None, "", "no study absent in the storage"),
        ("mine", None, "", "got mine, which is the study itself"),
        ("empty", [], "loss.ssim", "study empty has no finished trial"),
        ("foreign", [0.5], "train.lr", "study foreign searched none of the settings of bas_cp"),
    ],
)
def test_study_that_gives_no_point_is_refused_in_one_line(
    tmp_path: Path, name: str, mious: list[float] | None, key: str, message: str
):
    if mious is not None:
        add_study(tmp_path, name, mious, {key: 1.0})
    with pytest.raises(ConfigError, match=f"^--warm-start: {message}[^\n]*$"):
        warm_points(plan_for(tmp_path, name), {})
