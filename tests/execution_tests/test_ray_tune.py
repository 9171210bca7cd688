"""The hooks of Ray Tune, without running Ray."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from search.cli.signals import Interrupted
from search.execution.messages import TrialJob, TrialReport
from search.execution.ray_tune import (
    SUGGEST_BUDGET_S,
    LedgerScheduler,
    LedgerSearcher,
    RunState,
    StopBetweenSteps,
    memory_kills_as_deaths_of_ray_2,
)
from search.execution.stop_reason import LOCK_LOST
from search.execution.trial_events import StopRunError


def make_state(capacity: int = 3, locked: bool = True, next_attempt: Any = None) -> RunState:
    """The state of a run whose event handler starts a trial whenever it is asked."""
    live: dict[str, int] = {}

    def start(trial_id: str) -> int:
        live[trial_id] = len(live)
        return live[trial_id]

    ledger = SimpleNamespace(is_locked=locked)
    events = SimpleNamespace(live=live, next_attempt=next_attempt or start, ledger=ledger)
    monitor = SimpleNamespace(capacity=lambda: capacity, all_dead=lambda: False, take_messages=lambda: [])
    jobs = SimpleNamespace(job=lambda number: TrialJob(number, 1, {}, "", 1, 0, "fail"))
    return RunState(events, jobs, monitor, SimpleNamespace(received=None), lambda: None)  # type: ignore[arg-type]


def suggest(searcher: LedgerSearcher, times: int) -> list[bool]:
    """Whether each of these calls gave a trial to start."""
    return [isinstance(searcher.suggest(str(number)), dict) for number in range(times)]


def test_trials_are_suggested_as_long_as_they_fit():
    assert suggest(LedgerSearcher(make_state(capacity=3)), 5) == [True, True, True, False, False]


def test_slow_suggestions_leave_time_for_events_between_them():
    state = make_state()
    searcher = LedgerSearcher(state)
    state.step_began -= SUGGEST_BUDGET_S
    assert suggest(searcher, 3) == [True, False, False]  # at least one, or no trial would ever start
    StopBetweenSteps(state).on_step_begin(0, [])
    assert suggest(searcher, 1) == [True]


def test_run_that_must_stop_ends_between_two_steps():
    state = make_state(locked=False)
    with pytest.raises(Interrupted):
        StopBetweenSteps(state).on_step_begin(0, [])
    assert state.reason is LOCK_LOST


def test_after_a_fault_the_event_handler_is_not_called_again():
    calls = []

    def broken(trial_id: str) -> None:
        calls.append(trial_id)
        raise StopRunError("the disk is full; fix that")

    state = make_state(next_attempt=broken)
    assert suggest(LedgerSearcher(state), 3) == [False, False, False]
    assert calls == ["0"]
    assert (state.reason.exit_code, state.reason.text) == (1, "the disk is full; fix that")


@pytest.mark.parametrize(("stop", "decision"), [(True, TrialScheduler.STOP), (False, TrialScheduler.CONTINUE)])
def test_ray_tune_stops_the_trial_that_the_event_handler_stops(stop: bool, decision: str):
    state = make_state()
    state.events.on_report = lambda trial_id, report: stop
    result = {"report": TrialReport(0, 1).to_json()}
    assert LedgerScheduler(state).on_trial_result(None, SimpleNamespace(trial_id="a"), result) == decision


def test_experiment_ends_once_no_trial_is_left_and_none_runs():
    state = make_state(next_attempt=lambda trial_id: None)
    state.events.live["a"] = 0
    assert LedgerSearcher(state).suggest("b") is None
    state.events.live.clear()
    assert LedgerSearcher(state).suggest("b") == Searcher.FINISHED


def test_plan_with_its_passwords_is_not_pickled_into_the_files_of_ray_tune():
    state = make_state()
    state.jobs.plan = "postgresql://user:secret@host/ledger"
    for hook in (LedgerSearcher(state), LedgerScheduler(state), StopBetweenSteps(state)):
        assert b"secret" not in pickle.dumps(hook)


def end_by_memory_monitor() -> list[str]:
    """Let Ray Tune see that its memory monitor has killed the worker of a trial; returns which callbacks it calls."""
    called: list[str] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda *given: called.append("actor"))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda *given: called.append("trial"))
    manager: Any = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = OutOfMemoryError("memory is nearly used up")
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)
    return called


def test_worker_killed_by_rays_memory_monitor_counts_as_one_that_has_died():
    with memory_kills_as_deaths_of_ray_2():
        assert end_by_memory_monitor() == ["actor", "trial"]


def test_ray_tune_ends_the_experiment_where_the_memory_monitor_kills_a_worker():
    """Fails where Ray no longer does so: then `memory_kills_as_deaths_of_ray_2` is not needed any more."""
    with pytest.raises(RuntimeError, match="unexpected exception: memory is nearly used up"):
        end_by_memory_monitor()
