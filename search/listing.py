"""What `search.run` shows without running anything: spaces, studies, and what a call would do."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fgseg.config import ConfigError
from search.plan import Plan
from search.space import Space, list_spaces, load_space


def print_spaces() -> int:
    """Every search space: name, title, and what it searches."""
    table = Table(box=None)
    for column in ("space", "title", "searches"):
        table.add_column(column)
    for name in list_spaces():
        space = load_space(name)
        table.add_row(name, space.title, ", ".join(space.search))
    Console().print(table)
    return 0


def print_studies(storage: str) -> int:
    """Every study of a storage: trials by state, and the best."""
    from search.ledger import Ledger, State

    table = Table(box=None)
    for column in ("study", "finished", "stopped early", "failed", "open", "best mIoU"):
        table.add_column(column, justify="left" if column == "study" else "right")
    databases = sorted(Path(storage).expanduser().resolve().glob("*/study.db"))
    if not databases:
        raise ConfigError(f"--storage: no studies in {storage}; run a search first, or name another folder")
    for database in databases:
        ledger = Ledger(f"sqlite:///{database}", database.parent.name)
        states = [t.state for t in ledger.trials()]
        counts = [str(states.count(s)) for s in (State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING)]
        best = ledger.best()
        score = "-" if best is None else f"{best.value:.4f} (trial {best.number:03d})"
        table.add_row(database.parent.name, *counts, score)
    Console().print(table)
    return 0


def print_plan(plan: Plan) -> int:
    """The resolved settings, the space, and what would run."""
    from search.tracking import public_address

    console = Console(highlight=False)
    console.print(f"study {plan.study}: {plan.search.trials} trials of {plan.space.title} ({plan.space.name})")
    console.print(f"  storage   {plan.folder}")
    console.print(f"  MLflow    {public_address(plan.tracking_uri)}")
    console.print(settings_table(plan), space_table(plan.space))
    return 0


def settings_table(plan: Plan) -> Table:
    """Every setting that is not searched, of the model and of the search."""
    table = Table(title="settings", title_justify="left", box=None)
    table.add_column("name")
    table.add_column("value")
    for key, value in plan.run.flat().items():
        if key not in plan.space.search:
            table.add_row(key, "-" if value is None else str(value))
    for key, value in plan.search.model_dump(exclude={"tracking_uri", "storage"}).items():
        table.add_row(f"--{key.replace('_', '-')}", "-" if value is None else str(value))
    return table


def space_table(space: Space) -> Table:
    """Every searched setting with its range and start."""
    table = Table(title="searched", title_justify="left", box=None)
    for column in ("name", "from", "to", "drawn", "start"):
        table.add_column(column)
    for key, r in space.search.items():
        table.add_row(key, f"{r.low:g}", f"{r.high:g}", "log" if r.log else "linear", f"{r.start:g}")
    return table
