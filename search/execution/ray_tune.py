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
from search.cluster.ray_cluster import Pulse
from search.execution.messages import Job, Report
from search.execution.trial_events import Desk
from search.execution.worker import run_trial
from search.ledger.records import Ask
from search.study.resources import Resources

ASKING_S = 1.0
"""How long a turn of Ray Tune's loop asks for trials before it looks at events again; one ask may take half of it."""


class Turns(tune.Callback):
    """The turns of Ray Tune's loop; ends the experiment between two of them, when nothing is being written."""

    def __init__(self, must_stop: Callable[[], bool]):
        self.must_stop = must_stop
        self.began = time.monotonic()

    def may_ask(self) -> bool:
        """Whether this turn has time for another trial."""
        return time.monotonic() - self.began < ASKING_S

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: see LedgerSearcher."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.must_stop():
            raise Interrupted
        self.began = time.monotonic()


class LedgerSearcher(Searcher):
    """Ray Tune's view of the ledger: what to run next, and what became of it."""

    def __init__(self, desk: Desk, make_job: Callable[[Ask], Job], pulse: Pulse, turns: Turns):
        super().__init__(metric="epoch", mode="max")
        self.desk, self.make_job, self.pulse, self.turns = desk, make_job, pulse, turns
        self.places: dict[str, tuple[list[str], str | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles the searcher for a restore that is never made; the ledger is what lasts."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.desk.live) >= self.pulse.capacity() or (self.desk.live and not self.turns.may_ask()):
            return None
        ask = self.desk.hand_out(trial_id)
        if ask is not None:
            return asdict(self.make_job(ask))
        return None if self.desk.live else Searcher.FINISHED  # a live trial may die and have to be asked again

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.places[trial_id] = result["nodes"], result["reserved"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        nodes, reserved = self.places.pop(trial_id, ([], None))
        if reserved is not None:
            release(reserved)
        if error and any(self.pulse.gone(node) for node in nodes):
            self.desk.take_back(trial_id)
        else:
            self.desk.close(trial_id, Report.from_json(result["report"]) if result else None, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see __getstate__."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see __getstate__."""


def release(reserved: str) -> None:
    """Give back what the processes of an ended trial had reserved; nothing if that has been done.

    A placement group outlives Ray Train's controller if that is killed: Ray Train's own cleaner asks the dashboard,
    which a private cluster has not.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(reserved))))


class LedgerScheduler(FIFOScheduler):
    """Trials start in order; after each report the ledger is asked whether to stop."""

    def __init__(self, desk: Desk):
        super().__init__()
        self.desk = desk

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: see LedgerSearcher."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self.desk.record(trial.trial_id, Report.from_json(result["report"]))
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
    desk: Desk,
    make_job: Callable[[Ask], Job],
    resources: Resources,
    pulse: Pulse,
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
    scratch, turns = tempfile.mkdtemp(prefix="fgsearch-"), Turns(must_stop)
    try:
        tuner = tune.Tuner(
            trainable(resources),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(desk, make_job, pulse, turns),
                scheduler=LedgerScheduler(desk),
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
