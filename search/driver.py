"""One run of the command: check everything, run what is left of the budget, report."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fgseg.config import ConfigError
from fgseg.data import check as check_data
from fgseg.data import fingerprint, load_splits
from fgseg.weights import check_weights, fetch_weights, is_folder
from search.ledger import Ask, Ledger, LockedError
from search.plan import Plan, check_identity, check_storage
from search.report import Summary, score_table, summarise, write_report
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
    ledger = Ledger.create(plan.ledger_url, plan.study, identity)
    try:
        with ledger.hold():
            ledger.start(
                plan.space.distributions(),
                plan.space.start,
                trials=plan.search.trials,
                sampler=plan.search.sampler,
                pruner=plan.search.pruner,
                epochs=plan.run.train.epochs,
                seed=plan.run.train.seed,
                select=plan.run.train.select,
            )
            return run(plan, ledger, console)
    except LockedError as error:
        raise ConfigError(str(error)) from None


def check(plan: Plan, console: Console) -> dict[str, Any]:
    """Find every mistake before anything is written; returns the study's identity.

    Raises:
        ConfigError: the first mistake, in the order study, data, model, storage; then those inside the data's files.
    """
    settings = plan.run
    recorded = recorded_identity(plan)
    check_identity(recorded, plan.identity, plan.study)
    check_data(settings.data)
    check_weights(settings.model.name)
    check_storage(plan)
    with console.status("reading the data") as status:

        def show(split: str, done: int, total: int) -> None:
            status.update(f"decoding the {split} frames: {done} of {total}")

        splits = load_splits(settings.data, ("train", "val"), show)
    identity = plan.identity | {"data": fingerprint(splits)}
    check_identity(recorded, identity, plan.study)
    fetch_weights(settings.model.name)
    return identity


def recorded_identity(plan: Plan) -> dict[str, Any]:
    """The identity under which the study was begun; empty where there is no such study yet."""
    if not Ledger.exists(plan.ledger_url, plan.study):
        return {}
    return Ledger(plan.ledger_url, plan.study).identity


def run(plan: Plan, ledger: Ledger, console: Console) -> int:
    """Run the open and the missing trials, mirror them in MLflow, and report; returns the exit code."""
    tracker = Tracker(ledger, plan.tracking_uri, study_card(plan), lambda t: plan.trial_settings(t.number, t.params))
    tracker.start()
    code = FAULT
    try:
        code = run_missing(plan, ledger, tracker, console)
    finally:
        summary = summarise(plan, ledger)
        if summary is not None:
            tracker.publish(write_report(summary))
        synced = tracker.stop(timeout_s=30, interrupted=code in INTERRUPTED.values())
    show_end(plan, console, summary, code)
    if not synced:
        console.print(
            f"warning: MLflow at {public_address(plan.tracking_uri)} lacks the last results; run again to send them"
        )
    return FAULT if code == DONE and summary is None else code


def run_missing(plan: Plan, ledger: Ledger, tracker: Tracker, console: Console) -> int:
    """Hand trials to Ray until the budget is used up; returns the exit code."""
    if ledger.nothing_left():
        return DONE
    from search.cluster import cluster  # Ray takes seconds to import: not when there is nothing to run
    from search.progress import Progress
    from search.trial import Job
    from search.tune import Desk, Interrupted, run_trials

    with (
        Progress(console, plan.search.trials, plan.run.train.epochs, ledger.trials()) as progress,
        cluster(plan.search) as resources,
    ):

        def changed(number: int) -> None:
            tracker.notify(number)
            progress.update(ledger.trial(number))

        def make_job(ask: Ask) -> Job:
            settings = absolute(plan.trial_settings(ask.number, ask.params))
            return Job(ask.number, ask.attempt, settings, str(plan.trial_folder(ask.number)), resources.threads)

        desk = Desk(ledger, plan.run.train.epochs, plan.search.max_failures, changed)
        with stop_on_signals(desk) as received:
            try:
                run_trials(desk, make_job, resources)
            except Interrupted:
                return INTERRUPTED[received[0]]
    return DONE


@contextmanager
def stop_on_signals(desk: Any) -> Iterator[list[signal.Signals]]:
    """While inside, Ctrl-C and SIGTERM ask the desk to stop; gives the list of signals received."""
    received: list[signal.Signals] = []

    def handle(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        desk.stopping = True

    before = {s: signal.signal(s, handle) for s in INTERRUPTED}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with paths that hold in a worker, which has another current folder."""
    paths = {key: settings[key] for key in ("data.root", "data.cache", "model.name") if settings[key]}
    if not is_folder(settings["model.name"]) or not Path(settings["model.name"]).expanduser().exists():
        del paths["model.name"]
    if settings["data.root"] and not Path(settings["data.root"]).expanduser().exists():
        del paths["data.root"]
    return settings | {key: str(Path(path).expanduser().resolve()) for key, path in paths.items()}


def study_card(plan: Plan) -> StudyCard:
    """How the study presents itself in MLflow."""
    return StudyCard(
        study=plan.study,
        space=plan.space.name,
        title=plan.space.title,
        experiment=plan.experiment,
        artifacts=(plan.folder.parent / "mlartifacts").as_uri(),
        settings=plan.run.flat(),
    )


def show_end(plan: Plan, console: Console, summary: Summary | None, code: int) -> None:
    """The closing table, where everything is, and what to do next."""
    if summary is not None:
        console.print(score_table(summary))
        console.print(f"report:    {plan.folder / 'report' / 'report.md'}", soft_wrap=True, highlight=False)
    else:
        console.print("no trial has finished")
    console.print(f"results:   {plan.folder}", soft_wrap=True, highlight=False)
    console.print(f"look:      {mlflow_command(plan)}", soft_wrap=True, highlight=False)
    console.print(f"continue:  {continue_command(plan, code)}", soft_wrap=True, highlight=False)


def mlflow_command(plan: Plan) -> str:
    """The command, or the address, that shows the study in MLflow."""
    if plan.tracking_uri.startswith("http"):
        return public_address(plan.tracking_uri)
    return f"mlflow server --backend-store-uri {public_address(plan.tracking_uri)}  (then open http://127.0.0.1:5000)"


def continue_command(plan: Plan, code: int) -> str:
    """The command that goes on with the study: the same one, with a larger budget if this one is used up."""
    arguments = [a for a in sys.argv[1:]]
    if code == DONE:
        arguments = [*without_option(arguments, "--trials"), "--trials", str(2 * plan.search.trials)]
    return shlex.join(["python", "-m", "search.run", *arguments])


def without_option(arguments: list[str], name: str) -> list[str]:
    """The arguments without an option and its value."""
    kept = [a for a in arguments if not a.startswith(f"{name}=")]
    if name in kept:
        at = kept.index(name)
        del kept[at : at + 2]
    return kept
