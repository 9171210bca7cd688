"""Print the end of a run: the closing table, the addresses of the results, and the next commands."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fgseg.storage.store import join, open_store
from fgseg.tables import Table
from search.ledger.records import TrialRecord, count_ended
from search.report.summary import Summary
from search.report.tables import expected_note, references, score_table
from search.study.location import MODEL, PAGE, public_address
from search.study.plan import Plan


def print_run_summary(plan: Plan, console: Console, summary: Summary, finished: bool, limit: str = "") -> None:
    """Print the closing table, the addresses of the results, and the commands to view, continue and use them.

    Args:
        plan: of the run.
        console: to print on.
        summary: of the study.
        finished: whether the budget is used up; if so the command to continue has a larger one.
        limit: the setting whose time is used up, max_hours or max_gpu_hours; empty if the trials are done.
    """
    model = join(plan.location.folder, MODEL)
    if summary.best is None:
        console.print("no trial has finished")
    else:
        console.print()
        console.print(closing_table(summary, summary.best).to_rich(boxed=True))
        if note := expected_note(summary):
            console.print(note, soft_wrap=True, highlight=False, markup=False)
    if limit:
        hours, ended = getattr(plan.search, limit), count_ended(summary.trials)
        text = f"{flag_of(limit)} {hours:g} is used up: {ended} of {plan.search.search_trials} trials have ended"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    lines = {
        "results": plan.location.folder,
        "MLflow": mlflow_command(plan),
        "continue": continue_command(plan, finished, limit or "trials"),
    }
    if open_store(model).list():
        lines["use"] = shlex.join(["python", "-m", "fgseg.predict", model, "PHOTOS", "--out", "DIR"])
    if PAGE in plan.location.report_store.list():
        lines = {"report": join(plan.location.folder, "report", PAGE)} | lines
    for name, text in lines.items():
        console.print(f"{name + ':':10}{text}", soft_wrap=True, highlight=False, markup=False)


def closing_table(summary: Summary, best: TrialRecord) -> Table:
    """Compare the best trial class by class with the start point, and with the untrained checkpoint if known."""
    title = f"{summary.study}: {summary.endings()}"
    table = score_table(summary, references(summary, "start (trial 000)"), title, f"best (trial {best.number:03d})")
    if summary.untrained is None:
        return table
    narrow = [re.sub(r"[()]", "", name).replace(" ", "\n", 1) for name in table.columns]  # 78 of 80 characters
    return replace(table, columns=narrow)


def mlflow_command(plan: Plan) -> str:
    """Return the command, or the address, that shows the study in MLflow."""
    address = public_address(plan.location.tracking_uri)
    if address.startswith("http"):
        return address
    return (
        f"mlflow server --backend-store-uri {shlex.quote(address)}  # then open http://127.0.0.1:5000, Model training"
    )


def study_command(plan: Plan, module: str) -> str:
    """Return the command line that runs a module, such as `search.sync`, on this study."""
    return shlex.join(["python", "-m", module, "--study", plan.study, *plan.location_flags()])


def current_command() -> list[str]:
    """Return the words of this process's command line, without passwords."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":  # of a command that is a package, such as search.compare
        program = program.parent
    ours = program.parent.name == "search"
    start = ["python", "-m", f"search.{program.stem}"] if ours else ["python", str(program)]
    return [*start, *map(public_address, sys.argv[1:])]


def flag_of(setting: str) -> str:
    """Return the flag of a setting of the search."""
    return f"--{setting.replace('_', '-')}"


def continue_command(plan: Plan, finished: bool, limit: str = "trials") -> str:
    """Return the command that continues the study: the same one, with twice the budget if that is used up.

    Args:
        plan: of the run.
        finished: whether the budget is used up.
        limit: the setting that limited the run: trials, max_hours or max_gpu_hours.
    """
    words = [word for word in current_command() if word != "--accept-changes"]
    if not finished:
        return shlex.join(words)
    if words[1] != "-m":
        return f"the same call with more {limit}"
    flag = flag_of(limit)
    return shlex.join([*without_option(words, flag), flag, f"{2 * getattr(plan.search, limit):g}"])


def without_option(arguments: list[str], name: str) -> list[str]:
    """Return the arguments without an option and its value."""
    kept = [a for a in arguments if not a.startswith(f"{name}=")]
    while name in kept:
        at = kept.index(name)
        del kept[at : at + 2]
    return kept
