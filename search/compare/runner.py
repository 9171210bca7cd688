"""Run a comparison: the repeats of every family, one study after the other, then figures, files and MLflow."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.numpy import load as load_safetensors

from fgseg.checkpoints.manifest import verified
from fgseg.config.errors import ConfigError
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
from search.study.plan import COMPARISONS, REPEATS, UNIDENTIFYING, Plan, check_identity
from search.tracking.run_schema import StudyCard

DONE, FAULT = 0, 1


def run_comparison(plans: Sequence[Plan], name: str, point: str, signals: Signals) -> int:
    """Train and evaluate the missing repeats, then write the comparison; returns the exit code.

    Raises:
        ConfigError: the user's first mistake; nothing has been trained then.
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


def check_data(plans: Sequence[Plan]) -> None:
    """Raise ConfigError if a best point was found on other frames than those of this comparison."""
    now = fingerprint(load_splits(plans[0].run.data, ("train", "val")))
    for plan in plans:
        then = searched(plan).identity.get("data")
        if then != now and not plan.search.accept_changes:
            study = plan.study.removesuffix(REPEATS)
            raise ConfigError(
                f"--point best: study {study} was searched on other frames (data: {then} there, {now} now); "
                "give the same data, or accept that with --accept-changes"
            )


def searched(plan: Plan) -> Ledger:
    """The ledger of the search whose sibling holds the repeats."""
    return open_ledger(replace(plan, study=plan.study.removesuffix(REPEATS)).location)


def budgets(plans: Sequence[Plan]) -> list[str]:
    """For every family how many trials its best point is the best of: families that searched longer have more luck."""
    lines = []
    for plan in plans:
        trials = searched(plan).trials()
        point = plan.repeats[0].params
        number = next((f"{t.number:03d}" for t in trials if t.params == point and t.value is not None), "?")
        ended = sum(t.state is not State.RUNNING for t in trials)
        lines.append(f"{plan.space.title}: trial {number} of {ended}")
    return lines


def present_comparison(plans: Sequence[Plan], name: str, point: str, console: Console) -> int:
    """Compute, write and print the comparison from the ledgers; returns the exit code."""
    held = {plan.study: finished_repeats(plan) for plan in plans}
    missing = [line for plan in plans for line in what_is_missing(plan, held[plan.study])]
    compared = [plan for plan in plans if held[plan.study]]
    seeds = [s for s in range(len(plans[0].repeats)) if compared and all(s in held[plan.study] for plan in compared)]
    if not seeds:
        print(f"error: comparison {name}: no seed has finished in every family", *missing, sep="\n", file=sys.stderr)
        return FAULT
    families = [family(plan, [held[plan.study][seed] for seed in seeds]) for plan in compared]
    comparison = facts(compared, name, point, missing) | compare(families, seeds)
    folder = join(plans[0].location.storage, COMPARISONS, name)
    files = {"comparison.json": json.dumps(comparison, indent=1), "comparison.md": render_comparison(comparison)}
    for file, text in files.items():
        open_store(folder).put(file, text.encode())
    print_comparison(comparison, console)
    publish(compared[0], comparison, files, console)
    console.print(f"comparison: {join(folder, 'comparison.md')}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"look:       {mlflow_command(plans[0])}", soft_wrap=True, highlight=False, markup=False)
    return DONE


def finished_repeats(plan: Plan) -> dict[int, TrialRecord]:
    """The judged repeats of a plan by seed, trained under its settings.

    Those whose batch was changed under way count only if the plan allows it.
    """
    ledger = Ledger(plan.ledger_url, plan.study)
    return {
        record.seed: record
        for record in repeats_of(plan, ledger)
        if record.state is State.COMPLETE
        and record.test is not None
        and (plan.search.allow_changed_batch or not record.overrides)
        and not other_settings(plan, ledger, record)
    }


def repeats_of(plan: Plan, ledger: Ledger) -> list[TrialRecord]:
    """The trials of a study of repeats that are those of a plan."""
    wanted = [(repeat.params, repeat.seed) for repeat in plan.repeats]
    return [record for record in ledger.trials() if (record.params, record.repeat) in wanted]


def other_settings(plan: Plan, ledger: Ledger, record: TrialRecord) -> str:
    """The first setting that was another one when a repeat was trained; empty where none was."""
    then, now = ledger.settings_of(record.number), plan.run.flat()
    free = {*plan.space.search, *UNIDENTIFYING}
    return next((key for key in now if key not in free and then.get(key, now[key]) != now[key]), "")


def what_is_missing(plan: Plan, held: Mapping[int, TrialRecord]) -> list[str]:
    """Each seed of a family that has no part in the comparison, and why, in a line."""
    ledger = Ledger(plan.ledger_url, plan.study)
    records = {record.seed: record for record in repeats_of(plan, ledger)}
    lines = []
    for seed in sorted(set(range(len(plan.repeats))) - held.keys()):
        record = records.get(seed)
        changed = other_settings(plan, ledger, record) if record else ""
        reason = "has no trial" if record is None else (record.reason or f"is {record.state}")
        if record and record.state is State.COMPLETE:
            reason = f"was trained with another {changed}" if changed else "has another batch size"
        lines.append(f"{plan.space.title}: seed {seed} {reason}, so that this seed is left out of all families")
    if not held:
        lines.append(
            f"{plan.space.title}: no seed is left, so that the family is left out; "
            f"`python -m search.delete --study {plan.study}` lets it be trained again"
        )
    return lines


def family(plan: Plan, records: Sequence[TrialRecord]) -> Family:
    """The counts of every image under every seed."""
    counts = [read_counts(plan, record) for record in records]
    return Family(
        space=plan.space.name,
        title=plan.space.title,
        study=plan.study,
        point=dict(plan.repeats[0].params),
        confusion=np.stack([each["confusion"] for each in counts]),
        boundary=np.stack([each["boundary"] for each in counts]),
    )


def read_counts(plan: Plan, record: TrialRecord) -> dict[str, Any]:
    """The counts of a judged trial: confusion (N, 7, 7), boundary (N, 7, 2)."""
    if record.test is None:
        raise ValueError(f"trial {record.number} was not judged")
    blob = record.test.blob
    return dict(load_safetensors(verified(open_store(plan.trial_folder(record.number)), blob["name"], blob)))


def facts(plans: Sequence[Plan], name: str, point: str, missing: list[str]) -> dict[str, Any]:
    """What was compared, on what, and the command that does it again."""
    searched = {key for plan in plans for key in (*plan.space.search, *plan.space.fixed)}
    shared = {key: value for key, value in plans[0].run.flat().items() if key not in searched}
    origins = budgets(plans) if point == "best" else []
    known = {"name": name, "point": point, "origins": origins, "settings": shared}
    return known | {"missing": missing, "command": shlex.join(current_command())}


def publish(plan: Plan, comparison: dict[str, Any], files: Mapping[str, str], console: Console) -> None:
    """Keep the comparison in MLflow beside the studies; an MLflow that does not answer is told and forgiven."""
    from search.tracking.client import TrackingError
    from search.tracking.comparison_run import write_comparison

    info = StudyCard.of(Ledger(plan.ledger_url, plan.study), plan.location)
    try:
        write_comparison(plan.tracking_uri, info, comparison, files)
    except TrackingError as error:
        text = f"warning: {error}; it lacks the comparison, which the same command sends again"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def print_plans(plans: Sequence[Plan]) -> int:
    """Print what would run: for every family its study, its point, and the number of new, open and ended repeats."""
    rows, new = [], 0
    for plan in plans:
        records = trials_of(plan)
        held = {(tuple(sorted(r.params.items())), r.repeat): r.state for r in records}
        states = [held.get((tuple(sorted(repeat.params.items())), repeat.seed)) for repeat in plan.repeats]
        counts = [states.count(None), states.count(State.RUNNING)]
        new += sum(counts)
        point = ", ".join(f"{key}={value:g}" for key, value in plan.repeats[0].params.items())
        rows.append(Row([plan.space.title, plan.study, *map(str, [*counts, len(states) - sum(counts)]), point]))
    columns = ["family", "study", "new", "open", "ended", "point"]
    Console().print(Table("", columns, rows, text_columns=("study", "point")).to_rich())
    epochs = plans[0].run.train.epochs
    Console().print(
        f"{new} trainings of {epochs} epochs would run or go on, one family after the other", highlight=False
    )
    return DONE


def trials_of(plan: Plan) -> list[TrialRecord]:
    """The trials of a study of repeats, none where it does not exist yet; raises ConfigError for another identity."""
    if not Ledger.exists(plan.ledger_url, plan.study):
        return []
    ledger = Ledger(plan.ledger_url, plan.study)
    check_identity(ledger.identity, plan.identity, plan)
    return ledger.trials()
