"""One run of the command: check everything, run what is left of the budget, report."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from fgseg.cli import DONE, FAULT
from fgseg.config.errors import ConfigError
from fgseg.storage.s3 import ObjectStoreError
from search.cli.signals import CODES, Interrupted, Signals
from search.cluster.node_probe import versions
from search.console.progress import Progress
from search.console.run_summary import mlflow_command, print_run_summary, study_command
from search.console.study_status import goal_of
from search.execution.checkpoint_retention import CheckpointRetention
from search.execution.messages import TrialJob
from search.execution.preflight import make_folder, preflight
from search.execution.trial_events import TrialEventHandler
from search.export import export_best_trial
from search.ledger.catalog import check_ownership, write_owner_file
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError, StudyLock
from search.ledger.records import TrialAttempt
from search.report.background import ReportWriter
from search.report.summary import summarise
from search.study.location import public_address
from search.study.plan import Plan, absolute, check_identity, differences
from search.study.resources import Resources, gpu_needed, is_private
from search.tracking.run_schema import StudyCard, settings_of
from search.tracking.tracker import Tracker

CLOSING_S = 8
"""How long the end of a run waits for MLflow: less than the ten seconds in which a signal must be obeyed."""


@dataclass(frozen=True)
class Watch:
    """What may end a run before its budget is used up: a signal, or the loss of the study's lock."""

    signals: Signals
    lock: StudyLock


@dataclass(frozen=True)
class Outlets:
    """Where people see what a run does."""

    console: Console
    tracker: Tracker
    report: ReportWriter


def run_study(plan: Plan, signals: Signals) -> int:
    """Carry out a plan, of a search or of repeats, under the study's lock, up to its budget; returns the exit code.

    That is 0 done, 1 stopped by a fault, 130 or 143 interrupted.

    Raises:
        ConfigError: the user's first mistake; nothing has been written then.
        Interrupted: a signal came before anything was written.
    """
    console = Console()
    try:
        identity = preflight(plan, console)
        signals.gentle = True
        make_folder(plan.folder)
        ledger = Ledger.create(plan.ledger_url, plan.study)
        with ledger.lock() as lock:
            check_ownership(plan.location, ledger)  # again: another driver may have begun the study meanwhile
            check_identity(ledger.identity, identity, plan)
            if changes := differences(ledger.identity, identity):
                ledger.accept_changes(identity, changes, time.time())
            ledger.record_run(identity, study_facts(plan, ledger), budget(plan, ledger))
            write_owner_file(plan.location, ledger)
            start(plan, ledger)
            return run(plan, ledger, Watch(signals, lock), console)
    except LockedError as error:
        raise ConfigError(str(error)) from None
    except (LedgerError, ObjectStoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT


def budget(plan: Plan, ledger: Ledger) -> int:
    """Trials of the whole study; one of repeats keeps those that it has and gets those that it lacks."""
    if not plan.repeats:
        return plan.search.trials
    held = [(trial.params, trial.repeat) for trial in ledger.trials()]
    return len(held) + sum((repeat.params, repeat.seed) not in held for repeat in plan.repeats)


def start(plan: Plan, ledger: Ledger) -> None:
    """Make the ledger ready to be asked for trials."""
    train = plan.run.train
    if plan.repeats:
        return ledger.start_repeats(plan.repeats, epochs=train.epochs, select=train.select)
    ledger.start(
        plan.space.distributions(),
        plan.space.start,
        trials=plan.search.trials,
        sampler=plan.search.resolved_sampler,
        pruner=plan.search.pruner,
        epochs=train.epochs,
        seed=train.seed,
        select=train.select,
    )


def run(plan: Plan, ledger: Ledger, watch: Watch, console: Console) -> int:
    """Run the open and the missing trials, mirror them in MLflow, and report; returns the exit code."""
    tracker = Tracker(ledger, plan.tracking_uri, StudyCard.of(ledger, plan.location), settings_of(ledger))
    tracker.start()
    report = ReportWriter(plan.location, tracker.publish)
    code, failure, synced = FAULT, "", True
    try:
        code = run_remaining_trials(plan, ledger, watch, Outlets(console, tracker, report))
        if watch.lock.is_held() and not plan.repeats and code not in CODES.values():
            with console.status("writing the report"):
                failure = report.finish(lambda: bool(watch.signals.received))
    finally:
        report.stop()
        stopped = code in CODES.values()
        if watch.lock.is_held():
            synced = tracker.stop(timeout_s=3 if stopped else CLOSING_S, interrupted=stopped)
        else:
            tracker.abandon()
    if not watch.lock.is_held():
        return code  # all that follows is the other driver's to say
    if not plan.repeats:
        summary = summarise(ledger)
        if summary.best is not None and not watch.signals.received:
            export_best_trial(plan, ledger, console, lambda: bool(watch.signals.received))
        print_run_summary(plan, console, summary, finished=code == DONE)
    if failure:
        console.print(f"warning: the report could not be written: {failure}", highlight=False, markup=False)
    if not synced:
        address = public_address(plan.tracking_uri)
        text = f"warning: MLflow at {address} lacks results, which this sends: {study_command(plan, 'search.sync')}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    if watch.signals.received:
        return watch.signals.code
    return FAULT if code == DONE and not plan.repeats and ledger.best() is None else code


def run_remaining_trials(plan: Plan, ledger: Ledger, watch: Watch, outlets: Outlets) -> int:
    """Hand trials to Ray until the budget is used up; returns the exit code."""
    retention = CheckpointRetention(plan.search.keep_checkpoints, plan.trial_folder)
    try:
        retention.apply(ledger.trials())
    except OSError as error:
        outlets.console.print(f"warning: {error}; checkpoints that nobody needs stay", highlight=False, markup=False)
    if ledger.nothing_left():
        return DONE
    from search.cluster.ray_cluster import NodeMonitor, cluster, ray_environment

    os.environ.update(ray_environment())
    from search.execution.ray_tune import run_trials  # Ray takes seconds to import: not when there is nothing to run

    with (
        Progress(outlets.console, goal_of(ledger), ledger.trials(), mlflow_command(plan)) as progress,
        cluster(plan.search, gpu_needed(plan.run), watch.signals.install) as resources,
    ):
        ledger.record_resources({"cpus": resources.cpus, "gpus": resources.gpus})
        events, monitor = (
            event_handler(plan, ledger, retention, outlets, progress),
            NodeMonitor(resources, progress.tell),
        )
        required = ({} if is_private(plan.search) else versions()) | {"data": ledger.identity["data"]}

        def must_stop() -> bool:
            if monitor.all_dead():
                events.stop_reason = events.stop_reason or "the Ray cluster has died; run the same command again"
            if not watch.lock.is_held():
                events.stop_reason = events.stop_reason or "another driver has taken the study over"
            return bool(watch.signals.received or events.stop_reason)

        try:
            run_trials(events, lambda ask: make_job(plan, resources, required, ask), resources, monitor, must_stop)
        except Interrupted:
            outlets.console.print("stopping; the open trials can be continued")
    return watch.signals.code if watch.signals.received else exit_code(plan, ledger, events)


def event_handler(
    plan: Plan, ledger: Ledger, retention: CheckpointRetention, outlets: Outlets, progress: Progress
) -> TrialEventHandler:
    """The desk of a run, which tells everyone what has changed."""

    def changed(number: int) -> None:
        record = ledger.trial(number)
        outlets.tracker.notify(number)
        progress.update(record)
        if not plan.repeats:
            outlets.report.on_trial_update(record.ended is not None)
        if record.ended:
            try:
                retention.apply(ledger.trials())
            except OSError as error:
                events.stop_reason = f"{error}; mend that, then run the same command again"

    events = TrialEventHandler(
        ledger,
        epochs=plan.run.train.epochs,
        max_failures=plan.search.max_failures,
        max_failed_trials=plan.search.max_failed_trials,
        notify=changed,
        note=progress.note,
    )
    return events


def exit_code(plan: Plan, ledger: Ledger, events: TrialEventHandler) -> int:
    """The exit code of a run that nobody interrupted; its fault is told."""
    if not events.stop_reason and (left := ledger.open_trials()):
        events.stop_reason = f"trials {left} are still open; run the same command again"
    if events.stop_reason:
        print(f"error: study {plan.study}: {events.stop_reason}", file=sys.stderr)
    return FAULT if events.stop_reason else DONE


def study_facts(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """How the study presents itself, as JSON types; it stays in the experiment in which it began."""
    return {
        "study": plan.study,
        "space": plan.space.name,
        "title": plan.space.title,
        "experiment": ledger.info.get("experiment", plan.experiment),
        "settings": plan.run.flat(),
        "allow_changed_batch": plan.search.allow_changed_batch,
    }


def make_job(plan: Plan, resources: Resources, required: dict[str, str], ask: TrialAttempt) -> TrialJob:
    """What a worker needs to know about one start of a trial; a repeat is to be judged on the test split as well.

    Args:
        plan: says what is to be trained, and where it is kept.
        resources: of each trial.
        alike: what the worker's node must have like this one; empty where it is this one.
        ask: the start, as the ledger gave it.
    """
    return TrialJob(
        number=ask.number,
        attempt=ask.attempt,
        settings=absolute(plan.trial_settings(ask)),
        folder=plan.trial_folder(ask.number),
        threads=resources.threads,
        gpus=resources.gpus,
        on_oom=plan.search.on_oom,
        test=ask.repeat is not None,
        processes=resources.processes,
        cpus=resources.cpus,
        required_environment=required,
    )
