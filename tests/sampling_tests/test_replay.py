"""Every suggestion can be computed again from the ledger, whatever interrupted the search."""

import random
from pathlib import Path

import pytest
from builders import make_history
from optuna.distributions import FloatDistribution
from small_ledger import SPACE, START, drive
from sqlalchemy import update

from search.ledger.ledger import Ledger
from search.ledger.tables import TRIALS
from search.sampling.replay import replay
from search.sampling.study_sampler import StudySampler

pytestmark = pytest.mark.slow

TRIALS_ASKED = 12


def source(**changes: object) -> StudySampler:
    """The source of the trials of `drive`."""
    settings = {"trials": 1, "sampler": "random", "pruner": "none", "epochs": 2, "seed": 7}
    return StudySampler(SPACE | changes, START, **settings)


def run_interrupted_study(folder: Path, sampler: str) -> Ledger:
    """Run trials four at a time that end in another order than they began; a third of the calls have a fresh driver."""
    order = random.Random(3)
    ledger, running = drive(folder, sampler, trials=TRIALS_ASKED, epochs=2), {}
    while True:
        if order.random() < 1 / 3:
            ledger = drive(folder, sampler, trials=TRIALS_ASKED, epochs=2)
            running = {}
        while len(running) < 4 and (ask := ledger.next_attempt()):
            running[ask.number] = ask
        if not running:
            return ledger
        ask = running.pop(order.choice(list(running)))
        miou = 1 - abs(ask.params["a"] - 0.3) - abs(ask.params["b"] - 0.8)
        if order.random() < 0.2:
            ledger.fail(ask.number, ask.attempt, "out of memory")
        else:
            ledger.report(ask.number, ask.attempt, make_history(miou / 2, miou))
            ledger.complete(ask.number, ask.attempt)


@pytest.fixture(params=["gp", "tpe", "random"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return run_interrupted_study(tmp_path, request.param)


def test_every_point_of_an_interrupted_study_is_suggested_again(ledger: Ledger):
    assert len(ledger.trials()) == TRIALS_ASKED
    assert list(replay(ledger.trials(), source())) == []


def test_edited_point_is_reported_and_the_points_after_it_are_still_compared(ledger: Ledger):
    with ledger._engine.begin() as connection:
        connection.execute(update(TRIALS).where(TRIALS.c.number == 5).values(params={"a": 0.25, "b": 0.75}))
    reader = Ledger(ledger._engine.url.render_as_string(hide_password=False), "s")
    first, *rest = replay(reader.trials(), source())
    assert first.startswith("trial 5: its point is {'a': 0.25, 'b': 0.75}, replayed {'a': ")
    assert len(rest) < TRIALS_ASKED - 6


def test_study_of_another_space_or_version_of_optuna_cannot_be_replayed(ledger: Ledger):
    lines = list(replay(ledger.trials(), source(a=FloatDistribution(0.0, 2.0))))
    assert len(lines) == TRIALS_ASKED
    assert all(": cannot be replayed: space was " in line for line in lines)
    other = source()
    other.versions["optuna"] = "4.0.0"
    assert next(replay(ledger.trials(), other)).startswith("trial 0: cannot be replayed: optuna was ")
