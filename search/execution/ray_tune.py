"""Ray Tune runs the trials: a searcher, a scheduler and a callback without state of their own; the ledger has it.

Ray's exact call order decides much here: `on_trial_result` of the searcher is skipped where the scheduler stops the
trial, the last result comes twice, and an exception in any of these methods ends the whole experiment.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from ray import PlacementGroupID, tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.cli.signals import Interrupted, Signals
from search.cluster.ray_cluster import NodeMonitor
from search.execution.jobs import TrialJobs
from search.execution.messages import TrialReport
from search.execution.stop_reason import BUDGET, LOCK_LOST, StopReason, fault, signal
from search.execution.trial_events import StopRunError, TrialEventHandler
from search.execution.worker import run_trial
from search.ledger.ledger import Ledger
from search.study.resources import Resources

SUGGEST_BUDGET_S = 1.0
"""Seconds per step of Ray Tune spent on suggesting trials; one suggestion may take 0.5 s."""

T = TypeVar("T")


class RunState:
    """Holds what the hooks of Ray Tune share: event handler, jobs, nodes, display, and the first reason to stop."""

    def __init__(
        self,
        events: TrialEventHandler,
        jobs: TrialJobs,
        monitor: NodeMonitor,
        signals: Signals,
        refresh: Callable[[], None],
    ):
        self.events, self.jobs, self.monitor, self.signals, self.refresh = events, jobs, monitor, signals, refresh
        self.reason: StopReason | None = None
        self.step_began = time.monotonic()

    @property
    def ledger(self) -> Ledger:
        """The ledger that the event handler writes."""
        return self.events.ledger

    def call(self, handle: Callable[..., T], *arguments: Any, default: T) -> T:
        """Call a method of the event handler; returns `default` once the run has to stop, and does not call it."""
        if self.reason is not None:
            return default
        try:
            return handle(*arguments)
        except StopRunError as error:
            self.reason = fault(str(error))
            return default

    def check(self) -> StopReason | None:
        """Return why the run has to stop, or None; looks at signals, nodes and the study's lock."""
        all_dead = self.monitor.all_dead()
        for text in self.monitor.take_messages():
            self.events.note(text)
        if self.reason is None and all_dead:
            self.reason = fault("the Ray cluster has died; run the same command again")
        if self.reason is None and not self.ledger.is_locked:
            self.reason = LOCK_LOST
        if self.signals.received:
            self.reason = signal(self.signals.code)
        return self.reason

    def may_suggest(self) -> bool:
        """Return whether another trial may start now: a place is free, and this step has time to suggest a point."""
        live = len(self.events.live)
        if live >= self.monitor.capacity():
            return False
        return not live or time.monotonic() - self.step_began < SUGGEST_BUDGET_S

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles searcher, scheduler and callbacks to a file, for a restore that is never made.

        The plan's addresses may contain passwords, which a killed driver would leave in that file.
        """
        return {}


class StopBetweenSteps(tune.Callback):
    """Ends the experiment between two steps of Ray Tune's loop, when nothing is being written."""

    def __init__(self, state: RunState):
        self.state = state

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.state.check():
            raise Interrupted
        self.state.refresh()
        self.state.step_began = time.monotonic()


class LedgerSearcher(Searcher):
    """Suggests what the ledger says is next, and forwards the ends of trials to the event handler."""

    def __init__(self, state: RunState):
        super().__init__(metric="epoch", mode="max")
        self.state = state
        self.nodes_by_trial: dict[str, tuple[list[str], str | None]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.state.may_suggest():
            return None
        events = self.state.events
        trial = self.state.call(events.next_attempt, trial_id, default=None)
        if trial is not None:
            return asdict(self.state.jobs.job(trial))
        return None if events.live else Searcher.FINISHED  # a live trial may die and have to be started again

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.nodes_by_trial[trial_id] = result["nodes"], result["placement_group_id"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        nodes, group_id = self.nodes_by_trial.pop(trial_id, ([], None))
        if group_id is not None:
            remove_group(group_id)
        events = self.state.events
        if error and any(self.state.monitor.is_dead(node) for node in nodes):
            self.state.call(events.on_node_lost, trial_id, default=None)
        else:
            report = TrialReport.from_json(result["report"]) if result else None
            self.state.call(events.on_trial_end, trial_id, report, error, default=None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, see RunState."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, see RunState."""


def remove_group(group_id: str) -> None:
    """Release the placement group of an ended trial of several processes; releasing it again is no error.

    A placement group outlives Ray Train's controller where that is killed: Ray Train's own cleaner (2.60) asks the
    dashboard, which a private cluster does not run.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


class LedgerScheduler(FIFOScheduler):
    """Starts trials in order, and stops a trial where the event handler says so."""

    def __init__(self, state: RunState):
        super().__init__()
        self.state = state

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = TrialReport.from_json(result["report"])
        stop = self.state.call(self.state.events.on_report, trial.trial_id, report, default=True)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


@contextmanager
def memory_kills_as_deaths_of_ray_2() -> Iterator[None]:
    """Make Ray Tune 2.60 treat a worker that Ray has killed because memory was nearly used up as one that has died.

    Ray Tune handles RayActorError; OutOfMemoryError, which Ray's memory monitor causes, would end the experiment.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    handle = RayActorManager._actor_task_failed

    def handle_as_death(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        killed = isinstance(exception, OutOfMemoryError)
        handle(manager, tracked_actor_task, RayActorError(error_msg=str(exception)) if killed else exception)

    RayActorManager._actor_task_failed = handle_as_death
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = handle


def trainable(resources: Resources) -> Any:
    """Return what Ray Tune runs for a trial.

    A trial of several processes reserves their resources itself, and only waits in its own actor: hence no CPU here,
    and a byte of memory, the least that Ray accepts.
    """
    if resources.processes == 1:
        return tune.with_resources(run_trial, {"cpu": resources.cpus, "gpu": resources.gpus})
    from search.execution.worker_group import GroupTrial  # imports Ray Train

    return tune.with_resources(GroupTrial, {"cpu": 0, "memory": 1})


def run_trials(
    events: TrialEventHandler,
    jobs: TrialJobs,
    resources: Resources,
    monitor: NodeMonitor,
    signals: Signals,
    *,
    refresh: Callable[[], None],
) -> StopReason:
    """Run trials until the ledger has no more, or the run has to stop.  Ray must be initialised.

    Args:
        events: records what happens to them.
        jobs: makes the message that a worker gets.
        resources: of each trial.
        monitor: the nodes, which decide how many trials run at once.
        signals: checked several times a second.
        refresh: updates the display; called between two steps of Ray Tune, several times a second.

    Returns:
        BUDGET, or why the run stopped or its time was used up; the open trials then stay open.
    """
    scratch, state = tempfile.mkdtemp(prefix="fgsearch-"), RunState(events, jobs, monitor, signals, refresh)
    try:
        tuner = tune.Tuner(
            trainable(resources),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(state),
                scheduler=LedgerScheduler(state),
                num_samples=-1,
                reuse_actors=resources.processes == 1,  # several processes must end with their trial
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[StopBetweenSteps(state)],
                failure_config=tune.FailureConfig(max_failures=0),  # the ledger restarts a trial whose process died
            ),
        )
        # StopBetweenSteps raises Interrupted; the state has the reason.
        with memory_kills_as_deaths_of_ray_2(), suppress(Interrupted):
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    left = events.ledger.open_trials()
    if (left or state.reason or signals.received) and (stopped := state.check()) is not None:
        return stopped
    if events.ledger.nothing_left():
        return BUDGET
    if events.ledger.nothing_left(events.time.fits):
        return events.time.reason(events.epochs)
    return fault(f"trials {left} are still open; run the same command again")
