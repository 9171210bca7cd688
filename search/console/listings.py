"""Print spaces, studies, and the plan of a run, without running anything."""

from rich.console import Console

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.storage.store import absolute, is_local
from fgseg.tables import Row, Table
from search.ledger.catalog import study_names
from search.study.config import SearchConfig
from search.study.location import StudyLocation, normal_ledger, public_address
from search.study.plan import Plan, check_identity
from search.study.resources import describe_mps
from search.study.space import Range, Space, list_spaces, load_space


def print_spaces() -> int:
    """Print name, title and searched settings of every search space; returns exit code 0."""
    spaces = {name: load_space(name, DataConfig()) for name in list_spaces()}
    rows = [Row([name, space.title, ", ".join(space.search)]) for name, space in spaces.items()]
    Console().print(Table("", ["space", "title", "searches"], rows, text_columns=("title", "searches")).to_rich())
    return 0


def print_studies(search: SearchConfig) -> int:
    """Print every study of a storage or of a shared ledger: trials by state, and the best; returns exit code 0.

    Raises:
        ConfigError: there is no study.
    """
    locations = find_studies(search)
    if not locations:
        there = public_address(search.ledger_url or search.storage)
        raise ConfigError(f"--storage: no studies in {there}; run a search first, or name another folder")
    columns = ["study", "finished", "stopped early", "failed", "open", "best mIoU"]
    rows = [Row([location.study, *study_cells(location)]) for location in locations]
    Console().print(Table("", columns, rows).to_rich())
    return 0


def find_studies(search: SearchConfig) -> list[StudyLocation]:
    """Return the studies of the shared ledger if one is given, else of the storage."""
    shared = normal_ledger(search.ledger_url) if search.ledger_url else None
    if shared:
        from search.ledger.database import check_database

        check_database(shared)
    elif not is_local(search.storage):
        raise ConfigError("--storage: s3:// holds files only; give --ledger-url, whose studies are listed")
    storage = absolute(search.storage)
    return [StudyLocation(storage, name, "", shared) for name in study_names(storage, shared)]


def study_cells(location: StudyLocation) -> list[str]:
    """Return the number of trials in each state, and the best trial; dashes if the ledger cannot be read."""
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
    """Print what would run, the resolved settings and the space; returns exit code 0."""
    console = Console(highlight=False, markup=False)
    console.print(f"study {plan.study}: {plan.search.trials} trials of {plan.space.title} ({plan.space.name})")
    console.print(f"  would run {remaining_trials(plan)}")
    console.print(f"  storage   {plan.location.folder}")
    console.print(f"  ledger    {public_address(plan.location.ledger_url)}")
    console.print(f"  MLflow    {public_address(plan.location.tracking_uri)}")
    if sharing := describe_mps(plan.search):
        console.print(f"  GPUs      {sharing}", soft_wrap=True)
    console.print(plan_table(plan).to_rich(), space_table(plan.space).to_rich())
    return 0


def remaining_trials(plan: Plan) -> str:
    """Describe how many trials would be started and continued; raises ConfigError for a study of another identity."""
    from search.ledger.ledger import Ledger
    from search.ledger.records import State

    if not Ledger.exists(plan.location.ledger_url, plan.study):
        return f"{plan.search.trials} new trials; the study does not exist yet"
    ledger = Ledger(plan.location.ledger_url, plan.study)
    check_identity(ledger.metadata.identity, plan.identity, plan)
    states = [t.state for t in ledger.trials()]
    new, still_open = max(0, plan.search.trials - len(states)), states.count(State.RUNNING)
    return f"{new} new trials and {still_open} open ones; {len(states) - still_open} have ended"


def plan_table(plan: Plan) -> Table:
    """List every setting of the model and of the search that is not searched."""
    search = plan.search.model_dump(exclude={"tracking_uri", "storage", "ledger_url"})
    values = {key: value for key, value in plan.settings.flat().items() if key not in plan.space.search}
    values |= {f"--{key.replace('_', '-')}": value for key, value in search.items()}
    rows = [Row([name, "-" if value is None else str(value)]) for name, value in values.items()]
    return Table("settings", ["name", "value"], rows, text_columns=("value",))


def lowest_value(r: Range) -> str:
    """Format the lowest value of a range: `0.05`, or `0 or 0.05` for a setting that is either off or at least 0.05."""
    return f"{r.low:g}" if r.off_below is None else f"0 or {r.off_below:g}"


def space_table(space: Space) -> Table:
    """List every searched setting with its range, scale and start."""
    rows = [
        Row([key, lowest_value(r), f"{r.high:g}", "log" if r.log else "linear", f"{r.value(r.start):g}"])
        for key, r in space.search.items()
    ]
    return Table("searched", ["name", "from", "to", "drawn", "start"], rows, text_columns=("drawn",))
