"""What `search.run` shows without running anything: spaces, studies, and what a call would do."""

from rich.console import Console
from rich.table import Table

from fgseg.config.errors import ConfigError
from fgseg.storage.store import absolute, is_local
from search.ledger.catalog import study_names
from search.study.config import SearchConfig
from search.study.location import StudyLocation, normal_ledger, public_address
from search.study.plan import Plan, check_identity
from search.study.space import Space, list_spaces, load_space


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


def print_studies(search: SearchConfig) -> int:
    """Every study of a storage or of a shared ledger: trials by state, and the best."""
    table = Table(box=None)
    for column in ("study", "finished", "stopped early", "failed", "open", "best mIoU"):
        table.add_column(column, justify="left" if column == "study" else "right")
    places = find_studies(search)
    if not places:
        there = public_address(search.ledger_url or search.storage)
        raise ConfigError(f"--storage: no studies in {there}; run a search first, or name another folder")
    for location in places:
        table.add_row(location.study, *study_row(location))
    Console().print(table)
    return 0


def find_studies(search: SearchConfig) -> list[StudyLocation]:
    """The studies of the ledger that is shared, or else of the storage."""
    shared = normal_ledger(search.ledger_url) if search.ledger_url else None
    if shared:
        from search.ledger.database import check_database

        check_database(shared)
    elif not is_local(search.storage):
        raise ConfigError("--storage: s3:// holds files only; give --ledger-url, whose studies are listed")
    storage = absolute(search.storage)
    return [StudyLocation(storage, name, "", shared) for name in study_names(storage, shared)]


def study_row(location: StudyLocation) -> list[str]:
    """How many trials of a study ended in which way, and its best one."""
    from search.ledger.database import LedgerError
    from search.ledger.ledger import Ledger
    from search.ledger.records import State

    try:
        ledger = Ledger(location.ledger_url, location.study)
        states, best = [t.state for t in ledger.trials()], ledger.best()
    except (LedgerError, LookupError):
        return ["-", "-", "-", "-", "unreadable"]
    counts = [str(states.count(s)) for s in (State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING)]
    return [*counts, "-" if best is None else f"{best.value:.4f} (trial {best.number:03d})"]


def print_plan(plan: Plan) -> int:
    """The resolved settings, the space, and what would run."""
    console = Console(highlight=False, markup=False)
    console.print(f"study {plan.study}: {plan.search.trials} trials of {plan.space.title} ({plan.space.name})")
    console.print(f"  would run {what_is_left(plan)}")
    console.print(f"  storage   {plan.location.folder}")
    console.print(f"  ledger    {public_address(plan.location.ledger_url)}")
    console.print(f"  MLflow    {public_address(plan.location.tracking_uri)}")
    console.print(settings_table(plan), space_table(plan.space))
    return 0


def what_is_left(plan: Plan) -> str:
    """How many trials would be started and continued; raises ConfigError for a study of another identity."""
    from search.ledger.ledger import Ledger
    from search.ledger.records import State

    if not Ledger.exists(plan.location.ledger_url, plan.study):
        return f"{plan.search.trials} new trials; the study does not exist yet"
    ledger = Ledger(plan.location.ledger_url, plan.study)
    check_identity(ledger.metadata.identity, plan.identity, plan)
    states = [t.state for t in ledger.trials()]
    new, still_open = max(0, plan.search.trials - len(states)), states.count(State.RUNNING)
    return f"{new} new trials and {still_open} open ones; {len(states) - still_open} have ended"


def settings_table(plan: Plan) -> Table:
    """Every setting that is not searched, of the model and of the search."""
    table = Table(title="settings", title_justify="left", box=None)
    table.add_column("name")
    table.add_column("value")
    for key, value in plan.settings.flat().items():
        if key not in plan.space.search:
            table.add_row(key, "-" if value is None else str(value))
    for key, value in plan.search.model_dump(exclude={"tracking_uri", "storage", "ledger_url"}).items():
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
