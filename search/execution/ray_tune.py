"""Ray Tune runs the trials: a searcher and a scheduler that keep nothing themselves and ask the ledger."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray import PlacementGroupID, tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.cli.signals import Interrupted
from search.cluster.ray_cluster import NodeMonitor
from search.execution.messages import TrialJob, TrialReport
from search.execution.trial_events import TrialEventHandler
from search.execution.worker import run_trial
from search.ledger.records import TrialAttempt
from search.study.resources import Resources

SUGGEST_BUDGET_S = 1.0
"""How long a turn of Ray Tune's loop asks for trials before it looks at events again; one ask may take half of it."""


class StopBetweenSteps(tune.Callback):
    """The turns of Ray Tune's loop; ends the experiment between two of them, when nothing is being written."""

    def __init__(self, must_stop: Callable[[], bool]):
        self.must_stop = must_stop
        self.began = time.monotonic()

    def may_suggest(self) -> bool:
        """Whether this turn has time for another trial."""
        return time.monotonic() - self.began < SUGGEST_BUDGET_S

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: see LedgerSearcher."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.must_stop():
            raise Interrupted
        self.began = time.monotonic()


class LedgerSearcher(Searcher):
    """Ray Tune's view of the ledger: what to run next, and what became of it."""

    def __init__(
        self,
        events: TrialEventHandler,
        make_job: Callable[[TrialAttempt], TrialJob],
        monitor: NodeMonitor,
        turns: StopBetweenSteps,
    ):
        super().__init__(metric="epoch", mode="max")
        self.events, self.make_job, self.monitor, self.steps = events, make_job, monitor, turns
        self.nodes_by_trial: dict[str, tuple[list[str], str | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles the searcher for a restore that is never made; the ledger is what lasts."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.events.live) >= self.monitor.capacity() or (self.events.live and not self.steps.may_suggest()):
            return None
        ask = self.events.next_attempt(trial_id)
        if ask is not None:
            return asdict(self.make_job(ask))
        return None if self.events.live else Searcher.FINISHED  # a live trial may die and have to be asked again

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.nodes_by_trial[trial_id] = result["nodes"], result["reserved"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        nodes, group_id = self.nodes_by_trial.pop(trial_id, ([], None))
        if group_id is not None:
            remove_group(group_id)
        if error and any(self.monitor.is_dead(node) for node in nodes):
            self.events.on_node_lost(trial_id)
        else:
            self.events.on_trial_end(trial_id, TrialReport.from_json(result["report"]) if result else None, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see __getstate__."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see __getstate__."""


def remove_group(group_id: str) -> None:
    """Give back what the processes of an ended trial had reserved; nothing if that has been done.

    A placement group outlives Ray Train's controller if that is killed: Ray Train's own cleaner asks the dashboard,
    which a private cluster has not.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


class LedgerScheduler(FIFOScheduler):
    """Trials start in order; after each report the ledger is asked whether to stop."""

    def __init__(self, events: TrialEventHandler):
        super().__init__()
        self.events = events

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: see LedgerSearcher."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self.events.on_report(trial.trial_id, TrialReport.from_json(result["report"]))
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


def trainable(resources: Resources) -> Any:
    """What Ray runs for a trial.

    Several processes reserve what they need themselves while their trial only waits; a byte is the least Ray takes.
    """
    if resources.processes == 1:
        return tune.with_resources(run_trial, {"cpu": resources.cpus, "gpu": resources.gpus})
    from search.execution.worker_group import GroupTrial  # imports Ray Train

    return tune.with_resources(GroupTrial, {"cpu": 0, "memory": 1})


def run_trials(
    events: TrialEventHandler,
    make_job: Callable[[TrialAttempt], TrialJob],
    resources: Resources,
    monitor: NodeMonitor,
    must_stop: Callable[[], bool],
) -> None:
    """Run trials until the ledger has no more to ask for.  Ray must be initialised.

    Args:
        desk: keeps the books.
        make_job: what a worker needs to know about a start of a trial.
        resources: of each trial.
        pulse: says how many may run at once, and which nodes have died.
        must_stop: asked several times a second.

    Raises:
        Interrupted: `must_stop` said so; the open trials stay open.
    """
    scratch, turns = tempfile.mkdtemp(prefix="fgsearch-"), StopBetweenSteps(must_stop)
    try:
        tuner = tune.Tuner(
            trainable(resources),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(events, make_job, monitor, turns),
                scheduler=LedgerScheduler(events),
                num_samples=-1,
                reuse_actors=resources.processes == 1,  # several processes must end with their trial
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[turns],
                failure_config=tune.FailureConfig(max_failures=0),  # the ledger hands a dead trial out again
            ),
        )
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
