"""Ray Tune's view of the ledger, without running Ray."""

from types import SimpleNamespace

import pytest

from search.cli.signals import Interrupted
from search.execution.messages import Job
from search.execution.ray_tune import ASKING_S, LedgerSearcher, Turns


def make_searcher(turns: Turns, capacity: int = 3) -> LedgerSearcher:
    """A searcher whose desk hands out a trial whenever it is asked."""
    live: dict[str, int] = {}

    def hand_out(trial_id: str) -> int:
        live[trial_id] = len(live)
        return live[trial_id]

    desk, pulse = SimpleNamespace(live=live, hand_out=hand_out), SimpleNamespace(capacity=lambda: capacity)
    return LedgerSearcher(desk, lambda ask: Job(ask, 1, {}, "", 1, 0, "fail"), pulse, turns)  # type: ignore[arg-type]


def ask(searcher: LedgerSearcher, times: int) -> list[bool]:
    return [searcher.suggest(str(number)) is not None for number in range(times)]


def test_trials_are_asked_for_as_long_as_they_fit():
    assert ask(make_searcher(Turns(lambda: False)), 5) == [True, True, True, False, False]


def test_asking_that_takes_long_lets_events_be_heard_in_between():
    turns = Turns(lambda: False)
    searcher = make_searcher(turns)
    turns.began -= ASKING_S
    assert ask(searcher, 3) == [True, False, False]  # one at least, or nothing would ever happen
    turns.on_step_begin(0, [])
    assert ask(searcher, 1) == [True]


def test_run_that_must_stop_ends_between_two_turns():
    with pytest.raises(Interrupted):
        Turns(lambda: True).on_step_begin(0, [])
