"""Every suggestion can be computed again from the ledger, whatever interrupted the search."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from builders import make_history
from kept_study import change
from small_ledger import start_search
from sqlalchemy import event

from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.config.settings import RunConfig
from fgseg.storage.store import LocalStore
from search.audit.__main__ import main
from search.audit.points import audit_points
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import Constraint, StudyMetadata
from search.sampling.distributions import distributions
from search.sampling.sampler_choice import GP_TRIALS
from search.study.location import find_location
from search.study.space import Range

pytestmark = pytest.mark.slow

TRIALS, CONCURRENT, KILLS = 40, 4, 10
RANGES = {
    "loss.ssim": Range(low=0.05, high=5.0, log=True, start=0.4),
    "copy_paste.prob": Range(low=0.0, high=1.0, start=0.5),
}
START = {name: r.start for name, r in RANGES.items()}
SETTINGS = RunConfig().flat() | START | {"train.epochs": 1, "train.seed": 7}
IDENTITY = {"space": {"name": "bas", "search": {name: r.model_dump() for name, r in RANGES.items()}}}


class Killed(BaseException):
    """The driver dies."""


def open_as_driver(storage: Path, sampler: str, trials: int) -> Ledger:
    """The ledger of study `s` as a fresh driver opens it."""
    (storage / "s").mkdir(parents=True, exist_ok=True)
    ledger = Ledger.create(f"sqlite:///{storage}/s/study.db", "s")
    ledger.record_run(StudyMetadata(study="s", space="bas", settings=SETTINGS, identity=IDENTITY, budget=trials))
    settings = {"trials": trials, "sampler": sampler, "pruner": "none", "epochs": 1, "seed": 7}
    start_search(ledger, distributions(RANGES), START, **settings)
    return ledger


def kill_in_write(ledger: Ledger, count: int) -> None:
    """Let the driver die before the statement or commit of this number, counting those that change the database."""
    counted = itertools.count(1)

    def step() -> None:
        if next(counted) == count:
            raise Killed

    def on_statement(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if not statement.startswith("SELECT"):
            step()

    event.listen(ledger._engine, "before_cursor_execute", on_statement)
    event.listen(ledger._engine, "commit", lambda connection: step())


def run_trials(ledger: Ledger, order: random.Random) -> None:
    """Run all trials that are left, four at a time; they end in another order than they began, one in five fails."""
    running = {}
    while True:
        while len(running) < CONCURRENT and (ask := ledger.next_attempt()):
            running[ask.number] = ask
        if not running:
            return
        ask = running.pop(order.choice(list(running)))
        if order.random() < 0.2:
            ledger.fail(ask.number, ask.attempt, "out of memory")
        else:
            miou = 1 - abs(ask.params["copy_paste.prob"] - 0.3) - 0.1 * abs(ask.params["loss.ssim"] - 1)
            ledger.report(ask.number, ask.attempt, make_history(miou))
            ledger.complete(ask.number, ask.attempt)


def run_killed_study(storage: Path, sampler: str, trials: int, kills: int) -> None:
    """Run a study whose driver is killed again and again in the middle of a write."""
    order = random.Random(3)
    for _ in range(kills):
        ledger = open_as_driver(storage, sampler, trials)
        kill_in_write(ledger, order.randint(1, 40))
        with pytest.raises(Killed):
            run_trials(ledger, order)
    run_trials(open_as_driver(storage, sampler, trials), order)


@pytest.fixture(scope="module")
def killed_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The storage of a study that was killed ten times, with the checkpoint of its best trial."""
    storage = tmp_path_factory.mktemp("killed") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GP_TRIALS, "auto", 12)  # the Gaussian process takes most of the time, TPE follows
        run_killed_study(storage, "auto", TRIALS, KILLS)
        best = Ledger(f"sqlite:///{storage}/s/study.db", "s").best()
        store = LocalStore(storage / "s" / "trials" / str(best.number))
        Checkpoints(store, best.attempt).save({"weight": torch.zeros(1)}, {}, best.epochs, "last")
        yield storage


@pytest.fixture
def storage(killed_study: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return Path(shutil.copytree(killed_study, tmp_path / "runs"))


def replay(storage: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code and the lines of `search.audit --replay`."""
    code = main(["--study", "s", "--storage", str(storage), "--no-tracking", "--replay"])
    return code, capsys.readouterr().out.splitlines()


def test_every_point_of_a_study_that_was_killed_ten_times_is_suggested_again(
    killed_study: Path, capsys: pytest.CaptureFixture[str]
):
    assert replay(killed_study, capsys) == (0, ["study s: clean, 40 of 40 points suggested again"])
    records = Ledger(f"sqlite:///{killed_study}/s/study.db", "s").trials()
    assert {record.origin for record in records} == {"start", "sobol", "gp", "tpe"}
    assert max(record.attempt for record in records) > 1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_point_of_the_other_samplers_is_suggested_again(sampler: str, tmp_path: Path):
    run_killed_study(tmp_path, sampler, trials=20, kills=3)
    assert audit_points(find_location(tmp_path, "s")) == (20, [])


def test_edited_point_is_reported(storage: Path, capsys: pytest.CaptureFixture[str]):
    edited = """json_set(params, '$."copy_paste.prob"', 0.25)"""
    change(storage / "s" / "study.db", f"UPDATE fgsearch_trials SET params = {edited} WHERE number = 39")
    code, (line, last) = replay(storage, capsys)
    assert code == 1
    assert line.startswith("trial 39: its point is {") and ", replayed {" in line
    assert last == "study s: 1 broken, 39 of 40 points suggested again"


def test_edited_result_is_reported_by_the_points_that_depend_on_it(storage: Path, capsys: pytest.CaptureFixture[str]):
    change(storage / "s" / "study.db", "UPDATE fgsearch_trials SET value = value + 1 WHERE number = 0")
    code, lines = replay(storage, capsys)
    assert code == 1
    assert any(", replayed {" in line for line in lines)


def widen(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    search = IDENTITY["space"]["search"]
    wider = {"space": {"name": "bas", "search": search | {"loss.ssim": search["loss.ssim"] | {"high": 6.0}}}}
    ledger.accept_changes(wider, "space.search.loss.ssim.high: 5.0 there, 6.0 now", when=5.0)


def change_seed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record_run(replace(ledger.metadata, settings={**SETTINGS, "train.seed": 8}))


def update_optuna(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna, "__version__", "9.9.9")


def update_numpy(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.sampling.versions.installed", lambda name: "9.9.9")


def set_floors(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record_constraint(Constraint(floors={"car": 0.5}))


def drop_floors(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    floors = """json_set(context, '$.floors', json('{"car": 0.5}'))"""
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE fgsearch_trials SET context = {floors}")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (widen, "space was "),
        (change_seed, "seed was 7, is 8"),
        (set_floors, "floors was None, is {'car': 0.5}"),
        (drop_floors, "floors was {'car': 0.5}, is None"),
        (update_optuna, "optuna was "),
        (update_numpy, "numpy was "),
    ],
)
def test_what_cannot_be_replayed_is_named_with_its_reason(
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[Ledger, pytest.MonkeyPatch], None],
    reason: str,
):
    edit(Ledger(f"sqlite:///{storage}/s/study.db", "s"), monkeypatch)
    code, lines = replay(storage, capsys)
    assert code == 1
    assert all(f": cannot be replayed: {reason}" in line for line in lines[:TRIALS])
    assert lines[TRIALS:] == ["study s: 40 broken, 0 of 40 points suggested again"]
