"""One run of the command: check everything, run what is left of the budget, report."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fgseg.config import ConfigError
from fgseg.data import check as check_data
from fgseg.data import fingerprint, load_splits
from fgseg.weights import check_weights, fetch_weights
from search.closing import show_end, sync_command
from search.desk import Desk
from search.job import Job
from search.ledger import Ask, Ledger, LedgerError, LockedError
from search.lock import StudyLock
from search.plan import Plan, check_identity, check_storage, differences
from search.progress import Progress
from search.report import summarise, write_report
from search.shelf import Shelf
from search.tracking import StudyCard, Tracker, public_address

DONE, FAULT = 0, 1
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def search(plan: Plan) -> int:
    """Run what is left of a study; returns the exit code: 0 done, 1 stopped by a fault, 130 or 143 interrupted.

    Raises:
        ConfigError: the user's first mistake; nothing has been written then.
    """
    console = Console()
    identity = check(plan, console)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        ledger = Ledger.create(plan.ledger_url, plan.study)
        with ledger.hold() as lock:
            ledger.write_down(identity, study_facts(plan), plan.search.trials)
            if changes := differences(ledger.identity, identity):
                ledger.accept(identity, changes, time.time())
            start(plan, ledger)
            return run(plan, ledger, lock, console)
    except LockedError as error:
        raise ConfigError(str(error)) from None
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT


def check(plan: Plan, console: Console) -> dict[str, Any]:
    """Find every mistake before anything is written; returns the study's identity.

    Raises:
        ConfigError: the first mistake, in the order study, data, model, storage; then those inside the data's files.
    """
    settings = plan.run
    recorded = recorded_identity(plan)
    check_identity(recorded, plan.identity, plan)
    check_data(settings.data)
    check_weights(settings.model.name)
    check_storage(plan)
    with console.status("reading the data") as status:

        def show(split: str, done: int, total: int) -> None:
            status.update(f"decoding the {split} frames: {done} of {total}")

        splits = load_splits(settings.data, ("train", "val"), show)
    identity = plan.identity | {"data": fingerprint(splits)}
    check_identity(recorded, identity, plan)
    fetch_weights(settings.model.name)
    return identity


def recorded_identity(plan: Plan) -> dict[str, Any]:
    """The identity under which the study was begun; empty where there is no such study yet."""
    if not Ledger.exists(plan.ledger_url, plan.study):
        return {}
    return Ledger(plan.ledger_url, plan.study).identity


def start(plan: Plan, ledger: Ledger) -> None:
    """Make the ledger ready to be asked for trials."""
    train = plan.run.train
    ledger.start(
        plan.space.distributions(),
        plan.space.start,
        trials=plan.search.trials,
        sampler=plan.search.sampler,
        pruner=plan.search.pruner,
        epochs=train.epochs,
        seed=train.seed,
        select=train.select,
    )


def run(plan: Plan, ledger: Ledger, lock: StudyLock, console: Console) -> int:
    """Run the open and the missing trials, mirror them in MLflow, and report; returns the exit code."""
    card = StudyCard.of(ledger, plan.folder.parent)
    tracker = Tracker(ledger, plan.tracking_uri, card, plan.trial_settings)
    tracker.start()
    code = FAULT
    try:
        code = run_missing(plan, ledger, lock, tracker, console)
        summary = summarise(plan, ledger)
        if summary is not None:
            tracker.publish(write_report(summary))
    finally:
        stopped = code in INTERRUPTED.values()
        synced = tracker.stop(timeout_s=3 if stopped else 30, interrupted=stopped)
    show_end(plan, console, summary, finished=code == DONE)
    if not synced:
        console.print(
            f"warning: MLflow at {public_address(plan.tracking_uri)} lacks results; {sync_command(plan)} sends them"
        )
    return FAULT if code == DONE and summary is None else code


def run_missing(plan: Plan, ledger: Ledger, lock: StudyLock, tracker: Tracker, console: Console) -> int:
    """Hand trials to Ray until the budget is used up; returns the exit code."""
    shelf = Shelf(plan.search.keep_checkpoints, plan.run.train.select, plan.trial_folder)
    shelf.tidy(ledger.trials())
    if ledger.nothing_left():
        return DONE
    from search.cluster import Pulse, cluster  # Ray takes seconds to import: not when there is nothing to run
    from search.tune import Interrupted, run_trials

    with (
        Progress(console, plan.search.trials, plan.run.train.epochs, ledger.trials()) as progress,
        cluster(plan.search) as resources,
        stop_on_signals() as received,
    ):

        def changed(number: int) -> None:
            record = ledger.trial(number)
            tracker.notify(number)
            progress.update(record)
            if record.ended:
                shelf.tidy(ledger.trials())

        def make_job(ask: Ask) -> Job:
            settings, folder = absolute(plan.trial_settings(ask)), str(plan.trial_folder(ask.number))
            return Job(ask.number, ask.attempt, settings, folder, resources.threads, plan.search.on_oom)

        desk = Desk(
            ledger,
            epochs=plan.run.train.epochs,
            max_failures=plan.search.max_failures,
            max_failed_trials=plan.search.max_failed_trials,
            notify=changed,
            note=progress.note,
        )
        pulse = Pulse()

        def must_stop() -> bool:
            if pulse.lost():
                desk.fault = desk.fault or "the Ray cluster has died; run the same command again"
            if not lock.held():
                desk.fault = desk.fault or "another driver has taken the study over"
            return bool(received or desk.fault)

        try:
            run_trials(desk, make_job, resources, must_stop)
        except Interrupted:
            console.print("stopping; the open trials can be continued")
    if received:
        return INTERRUPTED[received[0]]
    if desk.fault:
        print(f"error: study {plan.study}: {desk.fault}", file=sys.stderr)
    return FAULT if desk.fault else DONE


@contextmanager
def stop_on_signals() -> Iterator[list[signal.Signals]]:
    """While inside, Ctrl-C and SIGTERM are only noted; gives the list of those received."""
    received: list[signal.Signals] = []

    def handle(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))

    before = {s: signal.signal(s, handle) for s in INTERRUPTED}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with paths that hold in a worker, which has another current folder."""
    paths = {}
    for key in ("data.root", "data.cache", "model.name"):
        path = Path(settings[key] or "").expanduser()
        if settings[key] and (path.exists() or key == "data.cache"):  # a hub id or a variant names no path
            paths[key] = str(path.resolve())
    return settings | paths


def study_facts(plan: Plan) -> dict[str, Any]:
    """How the study presents itself, as JSON types."""
    return {
        "study": plan.study,
        "space": plan.space.name,
        "title": plan.space.title,
        "experiment": plan.experiment,
        "settings": plan.run.flat(),
        "allow_changed_batch": plan.search.allow_changed_batch,
    }
