"""Ray Tune's view of the ledger, without running Ray."""

from types import SimpleNamespace

import pytest

from search.cli.signals import Interrupted
from search.execution.messages import TrialJob
from search.execution.ray_tune import SUGGEST_BUDGET_S, LedgerSearcher, StopBetweenSteps


def make_searcher(turns: StopBetweenSteps, capacity: int = 3) -> LedgerSearcher:
    """A searcher whose desk hands out a trial whenever it is asked."""
    live: dict[str, int] = {}

    def next_attempt(trial_id: str) -> int:
        live[trial_id] = len(live)
        return live[trial_id]

    events, monitor = SimpleNamespace(live=live, next_attempt=next_attempt), SimpleNamespace(capacity=lambda: capacity)
    return LedgerSearcher(events, lambda ask: TrialJob(ask, 1, {}, "", 1, 0, "fail"), monitor, turns)  # type: ignore[arg-type]


def ask(searcher: LedgerSearcher, times: int) -> list[bool]:
    return [searcher.suggest(str(number)) is not None for number in range(times)]


def test_trials_are_asked_for_as_long_as_they_fit():
    assert ask(make_searcher(StopBetweenSteps(lambda: False)), 5) == [True, True, True, False, False]


def test_asking_that_takes_long_lets_events_be_heard_in_between():
    turns = StopBetweenSteps(lambda: False)
    searcher = make_searcher(turns)
    turns.began -= SUGGEST_BUDGET_S
    assert ask(searcher, 3) == [True, False, False]  # one at least, or nothing would ever happen
    turns.on_step_begin(0, [])
    assert ask(searcher, 1) == [True]


def test_run_that_must_stop_ends_between_two_turns():
    with pytest.raises(Interrupted):
        StopBetweenSteps(lambda: True).on_step_begin(0, [])
