"""Print spaces, studies, and the plan of a run, without running anything."""

from collections.abc import Sequence

from rich.console import Console

from fgseg.config.label_sets import LABELS_FILE
from fgseg.config.settings import DataConfig
from fgseg.labels import display_name
from fgseg.tables import Row, Table
from search.console.documents import DataDocument, PlanDocument, SpaceDocument, StudyDocument
from search.console.study_status import scored
from search.ledger.records import State
from search.study.location import public_address
from search.study.plan import Plan
from search.study.space import Range, Space


def print_spaces(spaces: Sequence[SpaceDocument]) -> int:
    """Print name, title and searched settings of every search space; returns exit code 0."""
    rows = [Row([space.space, space.title, ", ".join(space.searched)]) for space in spaces]
    Console().print(Table("", ["space", "title", "searches"], rows, text_columns=("title", "searches")).to_rich())
    return 0


def print_studies(studies: Sequence[StudyDocument]) -> int:
    """Print trials by state and the best trial of every study; returns exit code 0."""
    columns = ["study", "finished", "stopped early", "failed", "open", "best mIoU"]
    rows = [Row([found.study, *study_cells(found)]) for found in studies]
    Console().print(Table("", columns, rows).to_rich())
    return 0


def study_cells(found: StudyDocument) -> list[str]:
    """Return the number of trials in each state, and the best trial; dashes if the ledger cannot be read."""
    if found.trials is None:
        return ["-", "-", "-", "-", "unreadable"]
    counts = [str(found.trials[s]) for s in (State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING)]
    if found.best_trial is None:
        return [*counts, "-"]
    objective = found.objectives[0]
    return [*counts, scored(found.best_trial, found.metrics[f"selected/{objective}"], objective)]


def print_plan(plan: Plan, found: PlanDocument) -> int:
    """Print what would run, the resolved settings and the space; returns exit code 0."""
    console = Console(highlight=False, markup=False)
    console.print(f"study {plan.study}: {plan.search.trials} trials of {plan.space.title} ({plan.space.name})")
    console.print(f"  would run {remaining_trials(found)}")
    console.print(f"  storage   {plan.location.folder}")
    console.print(f"  ledger    {public_address(plan.location.ledger_url)}")
    console.print(f"  MLflow    {public_address(plan.location.tracking_uri)}")
    if found.gpu_sharing:
        console.print(f"  GPUs      {found.gpu_sharing}", soft_wrap=True)
    console.print(plan_table(plan).to_rich(), space_table(plan.space).to_rich())
    print_data(found.data, plan.settings.data, console)
    return 0


def print_data(found: DataDocument, cfg: DataConfig, console: Console) -> None:
    """Print the frames, and the share and the number of frames of each class, or why they are not read."""
    if found.note:
        console.print(f"data: {found.note}")
        return
    columns = ["class", *(text for name in found.splits for text in (f"{name} pixels", f"{name} frames"))]
    cells = {
        key: [text for s in found.splits.values() for text in (f"{s.pixel_share[key]:.2%}", str(s.class_frames[key]))]
        for key in next(iter(found.splits.values())).pixel_share
    }
    sizes = ", ".join(f"{split.frames} {name}" for name, split in found.splits.items())
    title = f"data: {sizes} frames of {cfg.height}x{cfg.width}"
    console.print(Table(title, columns, [Row([display_name(key), *texts]) for key, texts in cells.items()]).to_rich())
    console.print(f"labels on frames: {found.picture}", soft_wrap=True)


def remaining_trials(found: PlanDocument) -> str:
    """Describe how many trials would be started and continued."""
    repeats = f", then {found.repeats} repeats of --confirm unless they exist" if found.repeats else ""
    if not found.exists:
        return f"{found.new_trials} new trials{repeats}; the study does not exist yet"
    return f"{found.new_trials} new trials and {found.open_trials} open ones{repeats}; {found.ended_trials} have ended"


def plan_table(plan: Plan) -> Table:
    """List every setting of the model and of the search that is not searched."""
    search = plan.search.model_dump(exclude={"tracking_uri", "storage", "ledger_url"})
    search |= {"warm_start": " ".join(plan.search.warm_start) or None, "no_register": not search.pop("register_model")}
    values = {key: value for key, value in plan.settings.flat().items() if key not in plan.space.search}
    if plan.settings.data.own_label_set():
        values["data.labels"] = f"{LABELS_FILE} of data.root"
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
