"""Run a comparison: train the repeats of every family, study by study; write tables, files and MLflow run."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from fgseg.checkpoints.untrained_result import UntrainedResult
from fgseg.cli import DONE, FAULT
from fgseg.config.errors import ConfigError
from fgseg.data import fingerprint, load_splits
from fgseg.storage.store import join, open_store
from search.cli.signals import Signals
from search.compare.plans import with_seeds
from search.compare.repeats import family, finished_repeats, missing_seeds
from search.compare.scores import Family, compare
from search.compare.seeds import next_seeds
from search.compare.tables import print_comparison, render_comparison
from search.console.run_summary import current_command, mlflow_command
from search.ledger.catalog import find_ledger, open_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import count_ended
from search.ledger.time_used import limits_left, time_used
from search.ledger.untrained import untrained_of
from search.report.build import complete_untrained
from search.report.tables import CHECKPOINT_NAME
from search.study.plan import COMPARISONS, REPEATS, RepeatPlan


def run_comparison(
    plans: Sequence[RepeatPlan], name: str, point: str, signals: Signals, precision: float | None = None
) -> int:
    """Train and evaluate the missing repeats and write the comparison; returns the exit code.

    May be repeated: finished repeats are not trained again.

    Args:
        plans: one of each family, with the same seeds.
        name: of the comparison.
        point: "start" or "best".
        signals: a signal ends the comparison.
        precision: seeds are added until half of every interval of a difference in mIoU is at most this; None adds none.

    Raises:
        ConfigError: the user's first mistake; nothing has been trained.
    """
    from search.execution.preflight import preflight, print_notes

    console = Console()
    for plan in plans:
        preflight(plan, console)
    if point == "best":
        check_data(plans)
    print_notes(plans[0], console)
    seeds: int | None = len(plans[0].repeats)
    while seeds is not None:
        plans = [with_seeds(plan, seeds) for plan in plans]
        code = train_repeats(plans, signals, console)
        if code != DONE:
            console.print(f"continue: {shlex.join(current_command())}", soft_wrap=True, highlight=False, markup=False)
            return code
        if signals.received:
            return signals.code
        seeds = None if precision is None else next_seeds(plans, precision, console)
    return present_comparison(plans, name, point, console)


def train_repeats(plans: Sequence[RepeatPlan], signals: Signals, console: Console) -> int:
    """Train the missing repeats, family by family, within the time of all; returns the exit code."""
    from search.execution.controller import run_study

    for plan in plans:
        left = time_left(plan, plans)
        if any(hours <= 0 for hours in left.values()):
            console.print(f"study {plan.study}: no time is left", highlight=False)
            continue
        console.print(f"study {plan.study}: {plan.space.title}, {len(plan.repeats)} seeds", highlight=False)
        limited = replace(plan, search=plan.search.model_copy(update=left))
        if (code := run_study(limited, signals, with_notes=False)) != DONE:
            return code
    return DONE


def time_left(plan: RepeatPlan, plans: Sequence[RepeatPlan]) -> dict[str, float]:
    """Return the limits of a family's study, whose time is what the studies of the other families leave, in hours."""
    ledgers = [find_ledger(other.location) for other in plans if other is not plan]
    used = [time_used(ledger.metadata, ledger.trials()) for ledger in ledgers if ledger]
    return limits_left(plan.search.model_dump(), used)


def check_data(plans: Sequence[RepeatPlan]) -> None:
    """Raise ConfigError if a best point was found on other frames than those of this comparison."""
    now = fingerprint(load_splits(plans[0].settings.data, ("train", "val")))
    for plan in plans:
        then = searched(plan).metadata.identity.get("data")
        if then != now and not plan.search.accept_changes:
            study = plan.study.removesuffix(REPEATS)
            raise ConfigError(
                f"--point best: study {study} was searched on other frames (data: {then} there, {now} now); "
                "give the same data, or accept that with --accept-changes"
            )


def searched(plan: RepeatPlan) -> Ledger:
    """Open the ledger of the search from which a plan's repeats take their point."""
    return open_ledger(replace(plan.location, study=plan.study.removesuffix(REPEATS)))


def budgets(plans: Sequence[RepeatPlan]) -> list[str]:
    """Return one line per family with the trial of its best point and the number of trials searched.

    A best point of more trials is more likely to be better by chance, so the comparison reports the numbers.
    """
    lines = []
    for plan in plans:
        trials = searched(plan).trials()
        point = plan.repeats[0].params
        number = next((f"{t.number:03d}" for t in trials if t.params == point and t.value is not None), "?")
        lines.append(f"{plan.space.title}: trial {number} of {count_ended(trials)}")
    return lines


def present_comparison(plans: Sequence[RepeatPlan], name: str, point: str, console: Console) -> int:
    """Compute, write and print the comparison of the finished repeats in the ledgers; returns the exit code."""
    finished = {plan.study: finished_repeats(plan) for plan in plans}
    missing = [line for plan in plans for line in missing_seeds(plan, finished[plan.study])]
    compared = [plan for plan in plans if finished[plan.study]]
    every_seed = range(len(plans[0].repeats))
    seeds = [seed for seed in every_seed if compared and all(seed in finished[plan.study] for plan in compared)]
    if not seeds:
        print(f"error: comparison {name}: no seed has finished in every family", *missing, sep="\n", file=sys.stderr)
        return FAULT
    families = [family(plan, [finished[plan.study][seed] for seed in seeds]) for plan in compared]
    checkpoint, problem = untrained_checkpoint(compared, len(seeds))
    comparison = comparison_header(compared, name, point, [*missing, *([problem] if problem else [])])
    comparison |= compare(families, seeds, checkpoint=checkpoint)
    folder = comparison_folder(plans, name)
    files = {"comparison.json": json.dumps(comparison, indent=1), "comparison.md": render_comparison(comparison)}
    for file, text in files.items():
        open_store(folder).put(file, text.encode())
    print_comparison(comparison, console)
    publish(compared[0], comparison, files, console)
    console.print(f"comparison: {join(folder, 'comparison.md')}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"MLflow:     {mlflow_command(plans[0])}", soft_wrap=True, highlight=False, markup=False)
    return DONE


def comparison_folder(plans: Sequence[RepeatPlan], name: str) -> str:
    """Return the folder of a comparison's files."""
    return join(plans[0].location.storage, COMPARISONS, name)


def stored_comparison(plans: Sequence[RepeatPlan], name: str) -> str:
    """Return the contents of `comparison.json`, which `present_comparison` has written."""
    return open_store(comparison_folder(plans, name)).get("comparison.json").decode()


def untrained_checkpoint(plans: Sequence[RepeatPlan], seeds: int) -> tuple[Family | None, str]:
    """Return the counts of the untrained checkpoint, the same for every seed; evaluates it if no study has its result.

    Returns:
        None unless all families start from one checkpoint that has some of the classes; and, if it cannot be evaluated,
        the reason in one line.
    """
    if len({plan.settings.model for plan in plans}) > 1:
        return None, ""
    problem = ""
    if not any(map(untrained_result, plans)):
        problem = complete_untrained(plans[0].location)
    found = next(filter(None, map(untrained_result, plans)), None)
    if found is None:
        return None, problem
    confusion, boundary = (np.asarray([counts] * seeds) for counts in (found.confusion, found.boundary))
    return Family("checkpoint", CHECKPOINT_NAME, "", {}, tuple(found.iou), confusion, boundary), ""


def untrained_result(plan: RepeatPlan) -> UntrainedResult | None:
    """Return the result of the untrained checkpoint in a plan's study, or None."""
    return untrained_of(plan.location, open_ledger(plan.location).metadata)


def comparison_header(plans: Sequence[RepeatPlan], name: str, point: str, missing: list[str]) -> dict[str, Any]:
    """Return the name, points, common settings and missing seeds of the comparison, and the command that repeats it."""
    searched = {key for plan in plans for key in (*plan.space.search, *plan.space.fixed)}
    shared = {key: value for key, value in plans[0].settings.flat().items() if key not in searched}
    origins = budgets(plans) if point == "best" else []
    known = {"name": name, "point": point, "origins": origins, "settings": shared}
    return known | {"missing": missing, "command": shlex.join(current_command())}


def publish(plan: RepeatPlan, comparison: dict[str, Any], files: Mapping[str, str], console: Console) -> None:
    """Write the comparison to the studies' MLflow experiment; prints a warning if MLflow fails."""
    from search.tracking.client import TrackingError
    from search.tracking.comparison_run import write_comparison

    metadata = open_ledger(plan.location).metadata
    try:
        write_comparison(plan.location, metadata, comparison, files)
    except TrackingError as error:
        text = f"warning: {error}; it lacks the comparison, which the same command sends again"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
