"""A search that must keep the IoU of some classes: its reference, its best trial, what the sampler learns."""

import json
import signal
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_epoch, make_trial, make_untrained
from small_ledger import SPACE, START
from thin_street import FOREGROUND

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.config.errors import ConfigError, FaultError
from fgseg.storage.store import LocalStore
from search.cli.signals import Interrupted, Signals
from search.execution import constraint as constraint_module
from search.execution.constraint import check_reference, prepare_constraint
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, keeps, rank_trials
from search.ledger.study_metadata import Constraint, StudyMetadata
from search.ledger.trial_source import FixedTrials
from search.report.summary import summarise
from search.report.tables import constraint_table
from search.sampling.study_sampler import StudySampler
from search.study.child_process import ChildError
from search.study.identity import differences
from search.study.plan import Plan, Repeat, make_plan


def plan_of(storage: Path, model: str = "streets", **search: object) -> Plan:
    """A search from the shipped checkpoint, or from random weights."""
    flags = {"storage": str(storage), "keep": "car,vegetation", "sampler": "random", **search}
    return make_plan("bas", "configs/quickstart.yaml", {"model.name": model}, flags, "s")


def open_ledger(plan: Plan) -> Ledger:
    Path(plan.location.folder).mkdir(parents=True, exist_ok=True)
    ledger = Ledger.create(plan.location.ledger_url, plan.study)
    identity = plan.identity | {"data": "f00d"}
    ledger.record_run(StudyMetadata(plan.study, settings=plan.settings.flat(), identity=identity, budget=4))
    return ledger


def repeat_baseline(plan: Plan, cars: Iterable[float]) -> None:
    """Write finished repeats of the baseline family, with these IoUs of cars."""
    study = "quickstart-baseline-repeats"
    folder = Path(plan.location.storage, study)
    folder.mkdir(parents=True)
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", study)
    ledger.record_run(StudyMetadata(study, settings=plan.settings.flat(), identity={"version": "1", "data": "f00d"}))
    repeats = [Repeat({}, seed) for seed, _ in enumerate(cars)]
    ledger.start(FixedTrials(repeats), epochs=1, select="last")
    for car in cars:
        attempt = ledger.next_attempt()
        assert attempt is not None
        iou = {c.key: 0.7 for c in FOREGROUND} | {"car": car}
        ledger.report(attempt.number, 1, [make_epoch(1, 0.7, iou=iou)])
        ledger.complete(attempt.number, 1)


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The content of the frames that a search reads; no frames are drawn."""
    content = {"fingerprint": "f00d"}
    monkeypatch.setattr(constraint_module, "load_splits", lambda data, names: content)
    monkeypatch.setattr(constraint_module, "fingerprint", lambda splits: splits["fingerprint"])
    return content


def test_floors_are_below_the_mean_of_the_repeats_of_the_baseline_and_do_not_change(tmp_path: Path, frames):
    plan = plan_of(tmp_path, model="small", max_drop=0.01)
    repeat_baseline(plan, [0.5, 0.6])
    check_reference(plan)
    ledger = open_ledger(plan)
    found = prepare_constraint(plan, ledger, Signals())
    assert found.floors == pytest.approx({"car": 0.54, "vegetation": 0.69})
    assert found.reference == "the mean of 2 repeats of baseline"
    again = Ledger(plan.location.ledger_url, "s")
    (Path(plan.location.storage) / "quickstart-baseline-repeats" / "study.db").unlink()
    check_reference(plan)
    assert prepare_constraint(plan, again, Signals()) == found == again.metadata.constraint


def test_repeats_on_frames_with_another_content_are_refused(tmp_path: Path, frames):
    plan = plan_of(tmp_path, model="small")
    repeat_baseline(plan, [0.5, 0.6])
    frames["fingerprint"] = "beef"
    with pytest.raises(ConfigError, match="were trained on other frames than those of streets; use another --storage"):
        prepare_constraint(plan, open_ledger(plan), Signals())


def test_without_repeats_the_untrained_checkpoint_is_evaluated_before_the_first_trial(tmp_path: Path, monkeypatch):
    plan = plan_of(tmp_path)
    check_reference(plan)

    def evaluate(location: object, signals: object) -> None:
        result = make_untrained(0.3, data="f00d")
        LocalStore(plan.location.folder).put(UNTRAINED, json.dumps(result.to_json()).encode())

    monkeypatch.setattr(constraint_module, "evaluate_untrained_in_child", evaluate)
    found = prepare_constraint(plan, open_ledger(plan), Signals())
    assert found == Constraint({"car": 0.295, "vegetation": 0.295}, 0.005, "the untrained checkpoint")


@pytest.mark.parametrize(("received", "expected"), [(None, FaultError), (signal.SIGINT, Interrupted)])
def test_evaluation_that_fails_is_a_fault_and_a_signal_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, received: signal.Signals | None, expected: type[BaseException]
):
    plan, signals = plan_of(tmp_path), Signals()
    signals.received = received

    class Child(nullcontext):
        def receive(self, limit_s: float, must_stop: Callable[[], bool]) -> None:
            assert must_stop() == (received is not None)
            raise ChildError("it took more than 1800 s")

    monkeypatch.setattr(constraint_module, "ChildProcess", lambda *arguments: Child(Child()))
    with pytest.raises(expected):
        prepare_constraint(plan, open_ledger(plan), signals)


def test_missing_reference_is_a_mistake_that_names_the_command_which_makes_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing to compare with") as raised:
        check_reference(plan_of(tmp_path, model="small", tracking_uri="http://me:secret@127.0.0.1:5000"))
    command = str(raised.value).partition("to train them: ")[2].split()
    assert command[:5] == ["python", "-m", "search.compare", "--spaces", "baseline"]
    assert command[-6:-2] == ["--set", "model.name=small", "--storage", str(tmp_path)]
    assert command[-2] == "--tracking-uri" and "secret" not in command[-1]


def test_unknown_class_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="--keep: no class 'cars'; did you mean car"):
        plan_of(tmp_path, keep="cars")


def test_another_constraint_is_a_change_of_the_study(tmp_path: Path):
    before, now = plan_of(tmp_path).identity, plan_of(tmp_path, max_drop=0.1).identity
    assert differences(before, now) == "constraint.max_drop: 0.005 there, 0.1 now"
    old = {key: value for key, value in before.items() if key != "constraint"}  # of an earlier version
    assert "constraint.keep: None there, 'car,vegetation' now" in differences(old, now)


def trial(number: int, miou: float, car: float) -> TrialRecord:
    epoch = make_epoch(3, miou, iou={c.key: miou for c in FOREGROUND} | {"car": car})
    return make_trial(number, epochs=[replace(epoch, epoch=n) for n in (1, 2, 3)], value=miou, selected=3)


RECORDS = [trial(0, 0.4, car=0.6), trial(1, 0.6, car=0.4), trial(2, 0.5, car=0.55), trial(3, 0.7, car=float("nan"))]
FLOORS = {"car": 0.5}


def test_trials_that_keep_the_classes_come_first():
    assert [r.number for r in rank_trials(RECORDS, False, FLOORS)] == [2, 0, 3, 1]
    assert [keeps(r, FLOORS) for r in RECORDS] == [True, False, True, False]
    assert [r.number for r in rank_trials(RECORDS, False, {"car": 0.9})] == [3, 1, 2, 0]  # none keeps it


class Records:
    """As much of a ledger as the summary of a study reads."""

    metadata = StudyMetadata("s", constraint=Constraint(FLOORS, 0.1, "the untrained checkpoint"))

    def trials(self) -> list[TrialRecord]:
        return RECORDS


def test_report_shows_the_best_trial_with_and_without_the_constraint():
    table = constraint_table(summarise(Records()))
    assert "at most 0.1 below the untrained checkpoint, kept by trial 002" in table.title
    assert table.columns == ["validation IoU", "at least", "best (trial 002)", "without it (trial 003)"]
    assert [row.cells for row in table.rows] == [
        ["car", "0.5000", "0.5500", "absent"],
        ["mIoU", "", "0.5000", "0.7000"],
    ]


def test_sampler_tells_optuna_which_trials_keep_the_classes():
    """`auto` as well, which then is Optuna's Gaussian process: its suggestion is the same."""
    settings = {"trials": 6, "pruner": "none", "epochs": 3, "seed": 7, "floors": FLOORS}
    source, same = (StudySampler(SPACE, START, sampler=sampler, **settings) for sampler in ("auto", "gp"))
    records = [
        replace(r, params={"a": 0.2 * r.number, "b": 0.5}, asked_seq=2 * n + 1, ended_seq=2 * n + 2, seq=2 * n + 2)
        for n, r in enumerate(RECORDS)
    ]
    new, other = source.next_trial(records), same.next_trial(records)
    assert new is not None and other is not None
    assert new.params == other.params
    assert (new.origin, new.context["floors"]) == ("gp", FLOORS)
    told = source._study.get_trials(deepcopy=False)
    assert [t.constraints["car"] for t in told[:4]] == pytest.approx([-0.1, 0.1, -0.05, 1.0])
