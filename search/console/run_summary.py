"""What a run prints at its end: the table, where everything is, and what to do next."""

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fgseg.storage.store import join, open_store
from search.ledger.records import TrialRecord
from search.report.summary import Summary, rows
from search.study.location import MODEL, PAGE, public_address
from search.study.plan import Plan


def print_run_summary(plan: Plan, console: Console, summary: Summary, finished: bool) -> None:
    """Print the closing table, the places of the results, and the commands to look at them, to use and to continue."""
    model = join(plan.location.folder, MODEL)
    if summary.best is None:
        console.print("no trial has finished")
    else:
        console.print()
        console.print(score_table(summary, summary.best))
    lines = {
        "results": plan.location.folder,
        "look": mlflow_command(plan),
        "continue": continue_command(plan, finished),
    }
    if open_store(model).list():
        lines["use"] = shlex.join(["python", "-m", "fgseg.predict", model, "PHOTOS", "--out", "DIR"])
    if PAGE in plan.location.report_store.list():
        lines = {"report": join(plan.location.folder, "report", PAGE)} | lines
    for name, text in lines.items():
        console.print(f"{name + ':':10}{text}", soft_wrap=True, highlight=False, markup=False)


def score_table(summary: Summary, best: TrialRecord) -> Table:
    """The best trial beside the start point, class by class."""
    table = Table(title=f"{summary.study}: {summary.endings()}", title_justify="left")
    table.add_column("validation IoU")
    for column in ("start (trial 000)", f"best (trial {best.number:03d})", "difference"):
        table.add_column(column, justify="right")
    for cells in rows(summary, summary.score(summary.start)):
        table.add_row(*cells, style="bold" if cells[0] == "mIoU" else None)
    return table


def mlflow_command(plan: Plan) -> str:
    """The command, or the address, that shows the study in MLflow."""
    address = public_address(plan.location.tracking_uri)
    if address.startswith("http"):
        return address
    return (
        f"mlflow server --backend-store-uri {shlex.quote(address)}  # then open http://127.0.0.1:5000, Model training"
    )


def study_command(plan: Plan, module: str) -> str:
    """A command on the study as it is, such as search.sync, which sends to MLflow what it missed."""
    arguments = ["--study", plan.study, "--storage", plan.search.storage]
    if plan.search.ledger_url:
        arguments += ["--ledger-url", public_address(plan.search.ledger_url)]
    if plan.search.tracking_uri:
        arguments += ["--tracking-uri", public_address(plan.search.tracking_uri)]
    return shlex.join(["python", "-m", module, *arguments])


def current_command() -> list[str]:
    """The words of the command that was given; a password never reaches the screen."""
    program = Path(sys.argv[0])
    ours = program.parent.name == "search"
    start = ["python", "-m", f"search.{program.stem}"] if ours else ["python", str(program)]
    return [*start, *map(public_address, sys.argv[1:])]


def continue_command(plan: Plan, finished: bool) -> str:
    """The command that goes on with the study: the same one, with a larger budget if that is used up."""
    words = [word for word in current_command() if word != "--accept-changes"]
    if not finished:
        return shlex.join(words)
    if words[1] != "-m":
        return "the same call with more trials"
    return shlex.join([*without_option(words, "--trials"), "--trials", str(2 * plan.search.trials)])


def without_option(arguments: list[str], name: str) -> list[str]:
    """The arguments without an option and its value."""
    kept = [a for a in arguments if not a.startswith(f"{name}=")]
    while name in kept:
        at = kept.index(name)
        del kept[at : at + 2]
    return kept
