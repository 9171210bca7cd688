"""Run a comparison: train the repeats of every family, study by study; write tables, files and MLflow run."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.numpy import load as load_safetensors

from fgseg.checkpoints.manifest import read_blob
from fgseg.checkpoints.untrained_result import UntrainedResult
from fgseg.cli import DONE, FAULT
from fgseg.config.errors import ConfigError
from fgseg.config.settings import with_defaults
from fgseg.data import fingerprint, load_splits
from fgseg.storage.store import join, open_store
from fgseg.tables import Row, Table
from search.cli.signals import Signals
from search.compare.scores import Family, compare
from search.compare.tables import print_comparison, render_comparison
from search.console.run_summary import current_command, mlflow_command
from search.ledger.catalog import open_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.ledger.untrained import untrained_of
from search.report.build import complete_untrained
from search.report.tables import CHECKPOINT_NAME
from search.study.plan import COMPARISONS, REPEATS, UNIDENTIFYING, RepeatPlan, check_identity


def run_comparison(plans: Sequence[RepeatPlan], name: str, point: str, signals: Signals) -> int:
    """Train and evaluate the missing repeats and write the comparison; returns the exit code.

    May be repeated: finished repeats are not trained again.

    Raises:
        ConfigError: the user's first mistake; nothing has been trained.
    """
    from search.execution.controller import run_study
    from search.execution.preflight import preflight

    console = Console()
    for plan in plans:
        preflight(plan, console)
    if point == "best":
        check_data(plans)
    for plan in plans:
        console.print(f"study {plan.study}: {plan.space.title}, {len(plan.repeats)} seeds", highlight=False)
        code = run_study(plan, signals)
        if code != DONE:
            console.print(f"continue: {shlex.join(current_command())}", soft_wrap=True, highlight=False, markup=False)
            return code
    return present_comparison(plans, name, point, console)


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
        ended = sum(t.state is not State.RUNNING for t in trials)
        lines.append(f"{plan.space.title}: trial {number} of {ended}")
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
    comparison = facts(compared, name, point, [*missing, *([problem] if problem else [])])
    comparison |= compare(families, seeds, checkpoint=checkpoint)
    folder = comparison_folder(plans, name)
    files = {"comparison.json": json.dumps(comparison, indent=1), "comparison.md": render_comparison(comparison)}
    for file, text in files.items():
        open_store(folder).put(file, text.encode())
    print_comparison(comparison, console)
    publish(compared[0], comparison, files, console)
    console.print(f"comparison: {join(folder, 'comparison.md')}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"look:       {mlflow_command(plans[0])}", soft_wrap=True, highlight=False, markup=False)
    return DONE


def comparison_folder(plans: Sequence[RepeatPlan], name: str) -> str:
    """Return the folder of a comparison's files."""
    return join(plans[0].location.storage, COMPARISONS, name)


def stored_comparison(plans: Sequence[RepeatPlan], name: str) -> str:
    """Return the contents of `comparison.json`, which `present_comparison` has written."""
    return open_store(comparison_folder(plans, name)).get("comparison.json").decode()


def finished_repeats(plan: RepeatPlan) -> dict[int, TrialRecord]:
    """Return the repeats of a plan with a test result, by seed, trained with the plan's settings.

    Repeats with a changed batch are included only if the plan allows it.
    """
    ledger = Ledger(plan.location.ledger_url, plan.study)
    return {
        record.seed: record
        for record in repeats_of(plan, ledger)
        if record.state is State.COMPLETE
        and record.test is not None
        and (plan.search.allow_changed_batch or not record.overrides)
        and not other_settings(plan, ledger, record)
    }


def repeats_of(plan: RepeatPlan, ledger: Ledger) -> list[TrialRecord]:
    """Return the trials in a study of repeats whose point and seed are in the plan."""
    wanted = [(repeat.params, repeat.seed) for repeat in plan.repeats]
    return [record for record in ledger.trials() if (record.params, record.repeat) in wanted]


def other_settings(plan: RepeatPlan, ledger: Ledger, record: TrialRecord) -> str:
    """Return the first setting with which a repeat was trained differently than planned, or an empty string."""
    then, now = with_defaults(ledger.metadata.settings_at(record.number)), plan.settings.flat()
    free = {*plan.space.search, *UNIDENTIFYING}
    return next((key for key in now if key not in free and then[key] != now[key]), "")


def missing_seeds(plan: RepeatPlan, finished: Mapping[int, TrialRecord]) -> list[str]:
    """Return one line per seed of a family that is excluded from the comparison, with the reason."""
    ledger = Ledger(plan.location.ledger_url, plan.study)
    records = {record.seed: record for record in repeats_of(plan, ledger)}
    lines = []
    for seed in sorted(set(range(len(plan.repeats))) - finished.keys()):
        record = records.get(seed)
        changed = other_settings(plan, ledger, record) if record else ""
        reason = "has no trial" if record is None else (record.reason or f"is {record.state}")
        if record and record.state is State.COMPLETE:
            reason = f"was trained with another {changed}" if changed else "has another batch size"
        lines.append(f"{plan.space.title}: seed {seed} {reason}, so that this seed is left out of all families")
    if not finished:
        lines.append(
            f"{plan.space.title}: no seed is left, so that the family is left out; "
            f"`python -m search.delete --study {plan.study}` lets it be trained again"
        )
    return lines


def family(plan: RepeatPlan, records: Sequence[TrialRecord]) -> Family:
    """Read the counts of every image and seed of a family."""
    counts = [read_counts(plan, record) for record in records]
    return Family(
        space=plan.space.name,
        title=plan.space.title,
        study=plan.study,
        point=dict(plan.repeats[0].params),
        confusion=np.stack([each["confusion"] for each in counts]),
        boundary=np.stack([each["boundary"] for each in counts]),
        classes=tuple(records[0].test.iou) if records[0].test else (),
        thin=tuple(records[0].test.thin) if records[0].test else (),
    )


def untrained_checkpoint(plans: Sequence[RepeatPlan], seeds: int) -> tuple[Family | None, str]:
    """Return the counts of the untrained checkpoint, the same for every seed; evaluates it if no study has its result.

    Returns:
        None unless all families start from one checkpoint and inherit its head; and, if it cannot be evaluated, the
        reason in one line.
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
    return untrained_of(plan.location, Ledger(plan.location.ledger_url, plan.study).metadata)


def read_counts(plan: RepeatPlan, record: TrialRecord) -> dict[str, Any]:
    """Read the counts per image of a repeat: confusion (N, C, C) int32, boundary (N, C, 2) int32."""
    if record.test is None:
        raise ValueError(f"trial {record.number} has no test result")
    return dict(load_safetensors(read_blob(plan.location.trial_store(record.number), record.test.blob)))


def facts(plans: Sequence[RepeatPlan], name: str, point: str, missing: list[str]) -> dict[str, Any]:
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

    metadata = Ledger(plan.location.ledger_url, plan.study).metadata
    try:
        write_comparison(plan.location, metadata, comparison, files)
    except TrackingError as error:
        text = f"warning: {error}; it lacks the comparison, which the same command sends again"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def print_plans(plans: Sequence[RepeatPlan]) -> int:
    """Print the study, point and numbers of new, open and ended repeats of each family; returns the exit code."""
    rows, new = [], 0
    for plan in plans:
        records = trials_of(plan)
        state_of = {(tuple(sorted(r.params.items())), r.repeat): r.state for r in records}
        states = [state_of.get((tuple(sorted(repeat.params.items())), repeat.seed)) for repeat in plan.repeats]
        counts = [states.count(None), states.count(State.RUNNING)]
        new += sum(counts)
        point = ", ".join(f"{key}={value:g}" for key, value in plan.repeats[0].params.items())
        rows.append(Row([plan.space.title, plan.study, *map(str, [*counts, len(states) - sum(counts)]), point]))
    columns = ["family", "study", "new", "open", "ended", "point"]
    Console().print(Table("", columns, rows, text_columns=("study", "point")).to_rich())
    epochs = plans[0].settings.train.epochs
    Console().print(
        f"{new} trainings of {epochs} epochs would run or go on, one family after the other", highlight=False
    )
    return DONE


def trials_of(plan: RepeatPlan) -> list[TrialRecord]:
    """Return the trials of a study of repeats, if it exists; raises ConfigError for another identity."""
    if not Ledger.exists(plan.location.ledger_url, plan.study):
        return []
    ledger = Ledger(plan.location.ledger_url, plan.study)
    check_identity(ledger.metadata.identity, plan.identity, plan)
    return ledger.trials()
