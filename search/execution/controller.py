"""The main path of a run: check everything, run what is left of the budget, present the results."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.cli import DONE, FAULT
from fgseg.config.errors import ConfigError
from fgseg.results import SupersededError
from fgseg.storage.s3 import ObjectStoreError
from fgseg.storage.store import open_store
from search.cli.signals import Signals
from search.cluster.node_probe import versions
from search.console.progress import Progress
from search.console.run_summary import mlflow_command
from search.execution.checkpoint_retention import CheckpointRetention
from search.execution.jobs import TrialJobs
from search.execution.preflight import make_folder, preflight, print_notes
from search.execution.stop_reason import BUDGET, StopReason, signal
from search.execution.strategies import Strategy, strategy_of
from search.execution.time_budget import TimeBudget
from search.execution.trial_events import TrialEventHandler
from search.execution.views import StudyViews
from search.ledger.catalog import check_ownership, write_owner_file
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError
from search.ledger.study_metadata import StudyMetadata
from search.study.identity import check_identity, differences
from search.study.plan import Plan
from search.study.resources import gpu_needed, is_private


def run_study(plan: Plan, signals: Signals, *, with_notes: bool = True) -> int:
    """Run what is left of a study's budget under its lock; returns the exit code.

    The code is 0 where the budget is used up, 1 after a fault, 130 or 143 after a signal.

    Args:
        plan: of the study.
        signals: of this process.
        with_notes: whether the notes about data and head are printed; one study of a command prints them.

    Raises:
        ConfigError: the user's first mistake; nothing has been written then.
        FaultError: Ray did not start, or the checkpoint of --keep cannot be evaluated.
        Interrupted: a signal came before the first trial.
    """
    console, strategy = Console(), strategy_of(plan)
    try:
        identity = preflight(plan, console)
        if with_notes:
            print_notes(plan, console)
        signals.gentle = True  # from here on a signal is acted on between two writes
        with open_for_writing(strategy, identity, signals) as ledger:
            views = StudyViews(strategy, ledger, console)
            reason: StopReason | None = None
            try:
                reason = run_remaining_trials(plan, ledger, views, signals)
                if reason.limit and ledger.is_locked:
                    ledger.record_limit(reason.limit)
            finally:
                views.close(reason, signals)
            code = reason.exit_code
            if ledger.is_locked:  # else all that follows is up to the other driver
                code = strategy.present_results(ledger, reason, signals, console)
                views.print_warnings()
                code = signals.code if signals.received else code
            elif code == DONE:  # the lock was lost after the last trial
                ledger.check_lock()
            return code
    except LockedError as error:
        raise ConfigError(str(error)) from None
    except SupersededError as error:  # before or after Ray Tune runs, whose hooks handle it themselves
        print(f"error: study {plan.study}: {error}", file=sys.stderr)
        return FAULT
    except (LedgerError, ObjectStoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    finally:
        signals.gentle = False  # no study is open any more


@contextmanager
def open_for_writing(strategy: Strategy, identity: dict[str, Any], signals: Signals) -> Iterator[Ledger]:
    """Create or open the study, lock it, record what this run knows, and prepare it for `Ledger.next_attempt`.

    Raises:
        ConfigError: the folder cannot be made, or another driver has created the study with another identity meanwhile.
        FaultError, Interrupted: see `search.execution.constraint.prepare_constraint`.
        LockedError: another driver works on the study.
    """
    plan = strategy.plan
    make_folder(plan.location.folder)
    store = open_store(plan.location.folder)
    ledger = Ledger.create(plan.location.ledger_url, plan.study)
    with ledger.lock():
        check_ownership(plan.location, ledger)
        store.remove_temporary()  # of a driver that was killed
        recorded = ledger.metadata
        check_identity(recorded.identity, identity, plan)
        if changes := differences(recorded.identity, identity):
            store.delete(UNTRAINED)  # perhaps of another checkpoint; before the record, after which nothing differs
            ledger.accept_changes(identity, changes, time.time())
        ledger.record_run(
            StudyMetadata(
                study=plan.study,
                space=plan.space.name,
                title=plan.space.title,
                experiment=recorded.experiment or plan.experiment,  # a study stays where it began
                settings=plan.settings.flat(),
                identity=identity,
                budget=strategy.budget(ledger),
                objectives=plan.search.objectives,
                allow_changed_batch=plan.search.allow_changed_batch,
                reserved=plan.search.repeats,
                max_hours=plan.search.max_hours,
                max_gpu_hours=plan.search.max_gpu_hours,
                keep_checkpoints=num_to_keep(plan),
            ),
            began=time.time(),
        )
        write_owner_file(plan.location, ledger)
        strategy.prepare(ledger, signals)
        yield ledger
        if ledger.is_locked:
            store.remove_temporary()  # of a worker that was killed while it wrote UNTRAINED


def num_to_keep(plan: Plan) -> int:
    """Return the number of best trials that keep their weights: those of --confirm are among them."""
    return max(plan.search.keep_checkpoints, plan.search.confirm)


def run_remaining_trials(plan: Plan, ledger: Ledger, views: StudyViews, signals: Signals) -> StopReason:
    """Run the open and the missing trials on Ray; returns why that ended.  Starts nothing where none is left."""
    retention = CheckpointRetention(num_to_keep(plan), plan.location, ledger)
    try:
        retention.apply()
    except OSError as error:
        views.print_line(f"warning: {error}; checkpoints that nobody needs stay")
    if ledger.nothing_left():
        return BUDGET
    budget = TimeBudget(plan.search, ledger)
    if ledger.nothing_left(budget.fits):
        return budget.reason(plan.settings.train.epochs)
    from search.cluster.ray_cluster import NodeMonitor, cluster, set_ray_environment

    set_ray_environment()
    from search.execution.ray_tune import run_trials  # importing Ray takes seconds

    with (
        Progress(
            views.console, ledger.metadata, ledger.trials(), mlflow_command(plan), verbose=plan.search.verbose
        ) as progress,
        cluster(plan.search, gpu_needed(plan.settings), signals.install) as resources,
    ):
        ledger.record_resources({"cpus": resources.cpus, "gpus": resources.gpus})
        listeners = [*views.listeners, progress, retention]
        events = TrialEventHandler(ledger, plan.settings.train.epochs, plan.search, listeners, views.precedence)
        required = ({} if is_private(plan.search) else versions()) | {"data": ledger.metadata.identity["data"]}
        monitor = NodeMonitor(resources)
        jobs = TrialJobs(plan, resources, required)
        reason = run_trials(events, jobs, resources, monitor, signals, refresh=progress.refresh)
        if reason is not BUDGET and ledger.open_trials():  # before Ray is shut down, which takes seconds
            views.print_line("stopping; the open trials can be continued")
    if signals.received:  # perhaps while Ray was shut down
        return signal(signals.code)
    if reason.text:
        print(f"error: study {plan.study}: {reason.text}", file=sys.stderr)
    return reason
