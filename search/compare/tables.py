"""The tables of a comparison of families, on a terminal and in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from fgseg.labels import display_name
from fgseg.tables import Row, Table
from search.compare.scores import MEAN, THIN_MEAN
from search.compare.statistics import ALPHA
from search.report.tables import CHECKPOINT_NAME
from search.study.space import BASELINE

SHOWN = (
    *("data.reader", "data.height", "data.width", "data.train", "model.name"),
    *("train.epochs", "train.batch_size", "train.lr", "train.select"),
)
"""Settings that the introduction names."""
WIDTH_COLUMNS = 120
"""Width of the output in characters if it is no terminal."""
MEANS = {THIN_MEAN: "thin mIoU", MEAN: "mIoU"}
"""Names of the rows that hold a mean over classes, by key."""
BOUNDARY_MEANS = {THIN_MEAN: "thin mean", MEAN: "mean"}
"""Their names in the tables of boundary IoU."""


@dataclass(frozen=True)
class Section:
    """One table of a comparison below its heading, and the notes below the table."""

    title: str
    table: Table
    notes: Sequence[str] = ()


def make_section(title: str, columns: list[str], rows: list[list[str]], notes: Sequence[str] = ()) -> Section:
    """Build a section whose rows of means are strong."""
    means = {*MEANS.values(), *BOUNDARY_MEANS.values()}
    styled = [Row(cells, "strong" if cells[0] in means else "") for cells in rows]
    return Section(title, Table("", columns, styled), notes)


def render_comparison(comparison: dict[str, Any]) -> str:
    """Render a comparison (`search.compare.scores.compare` and its header) as a Markdown page."""
    lines = [f"# Comparison {comparison['name']}", "", *introduction(comparison), ""]
    for section in sections(comparison):
        lines += [f"## {section.title}", "", section.table.to_markdown(), ""]
        lines += [line for note in section.notes for line in (note, "")]
    return "\n".join(lines)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print the same content as `render_comparison` on a terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_COLUMNS)
    for line in introduction(comparison):
        console.print(line, highlight=False, markup=False)
    for section in sections(comparison):
        console.print(f"\n{section.title}", style="bold", highlight=False, markup=False)
        console.print(section.table.to_rich())
        for note in section.notes:
            console.print(note, highlight=False, markup=False)


def introduction(comparison: dict[str, Any]) -> list[str]:
    """Return the lines that describe the compared families, seeds and settings, and name what is missing."""
    settings, seeds = comparison["settings"], comparison["seeds"]
    first = settings.get("train.seed", 0)
    numbers = ", ".join(str(first + seed) for seed in seeds)
    point = "the start of its space" if comparison["point"] == "start" else "the best point of its study"
    lines = [
        f"Every family at {point}, trained with {count(len(seeds), 'seed')} ({numbers}) "
        f"and evaluated on {count(comparison['images'], 'test frame')} that no search has seen.",
        "Settings: " + ", ".join(f"{key}={settings[key]}" for key in SHOWN if key in settings) + ".",
        f"Command: `{comparison['command']}`",
        *([f"Best points: {'; '.join(comparison['origins'])}."] if comparison["origins"] else []),
        *(f"Left out: {text}." for text in comparison["missing"]),
    ]
    if len(seeds) < 2:
        lines.append("With one seed no interval and no p-value can be given: any difference may be due to that seed.")
    return [text for line in lines for text in (line, "")][:-1]


def sections(comparison: dict[str, Any]) -> Iterator[Section]:
    """Yield every section, those against the baseline first."""
    titles = {family["space"]: family["title"] for family in comparison["families"]}
    scores = {family["space"]: family for family in comparison["families"]}
    for difference in comparison["against_baseline"]:
        yield improvement_section(difference, scores, titles, comparison)
    if "checkpoint" in comparison:
        yield checkpoint_section(comparison, titles)
    if len(titles) > 1:
        yield ranking_section(comparison)
    if comparison["between_approaches"]:
        yield pairs_section(comparison, titles)
    yield boundary_section(comparison)
    if comparison["against_baseline"]:
        yield boundary_gain_section(comparison, titles)
    yield point_section(comparison)


def improvement_section(
    difference: dict[str, Any], scores: dict[str, Any], titles: dict[str, str], comparison: dict[str, Any]
) -> Section:
    """Compare one approach with the baseline: both test IoUs, the improvement, its interval and its p-value."""
    approach, reference = difference["approach"], difference["reference"]
    rows = [
        [
            row_name(row),
            number(scores[reference]["iou"][row]["value"]),
            number(scores[approach]["iou"][row]["value"]),
            *difference_cells(cell),
        ]
        for row, cell in difference["iou"].items()
    ]
    header = ["Class", titles[reference], titles[approach], "Improvement", "95 % interval", "p (Holm)"]
    notes = [method_note(comparison, len(comparison["against_baseline"])), significance_note(difference["iou"])]
    return make_section(f"{titles[approach]} against {titles[reference]}", header, rows, notes)


def difference_cells(cell: dict[str, Any]) -> list[str]:
    """Return a difference, its interval and its corrected p-value as texts."""
    interval = "-" if cell["low"] is None else f"{cell['low']:+.4f} to {cell['high']:+.4f}"
    return [signed(cell["value"]), interval, "-" if cell["p_holm"] is None else p_value(cell["p_holm"])]


def method_note(comparison: dict[str, Any], tests: int) -> str:
    """Describe how intervals and p-values were computed, in a sentence."""
    seeds = len(comparison["seeds"])
    if seeds < 2:
        return "One seed: no interval can be given."
    drawn = f"{count(seeds, 'seed')} and {count(comparison['images'], 'frame')}"
    warning = "With two seeds up to 9 % of equal families differ significantly: use more. " if seeds == 2 else ""
    return (
        f"{warning}Paired bootstrap over {drawn} ({comparison['resamples']} resamples), Student's t; "
        f"p corrected for {count(tests, 'comparison')} per row (Holm), the intervals are not."
    )


def significance_note(cells: dict[str, Any]) -> str:
    """Describe the difference in mIoU, and name the classes whose difference is significant."""
    clear = [f"{row_name(row)} {signed(c['value'])}" for row, c in cells.items() if row not in MEANS and star(c)]
    classes = f"Of the classes, distinguishable from zero: {', '.join(clear) or 'none'}."
    return f"mIoU {verdict_text(cells['mean'])}. {classes if cells['mean']['p'] is not None else ''}".rstrip()


def verdict_text(cell: dict[str, Any]) -> str:
    """Describe a difference and its verdict in words."""
    words = {
        "not distinguishable": "is not distinguishable from zero at these seeds",
        "unknown": "may be due to the only seed",
        "higher": "is a gain",
        "lower": "is a loss",
    }
    return f"{signed(cell['value'])} {words.get(cell['verdict'], 'cannot be computed')}"


def checkpoint_section(comparison: dict[str, Any], titles: dict[str, str]) -> Section:
    """Compare every family's test IoU with that of the untrained checkpoint from which all families start."""
    differences, untrained = comparison["against_checkpoint"], comparison["checkpoint"]["iou"]
    rows = [
        [
            row_name(row),
            number(untrained[row]["value"]),
            *(f"{signed(cell['value'])}{star(cell)}" for cell in (d["iou"][row] for d in differences)),
        ]
        for row in untrained
    ]
    notes = [
        f"* distinguishable from zero at these seeds (corrected p below {ALPHA}); no other is.",
        method_note(comparison, len(differences)),
        *(f"{titles[d['approach']]}: {significance_note(d['iou'])}" for d in differences),
    ]
    header = ["Class", CHECKPOINT_NAME, *(titles[d["approach"]] for d in differences)]
    return make_section("Improvement over the untrained checkpoint: test IoU", header, rows, notes)


def ranking_section(comparison: dict[str, Any]) -> Section:
    """List every family's mean IoU over seeds with its interval, and its rank, by class."""
    families = comparison["families"]
    rows = [[row_name(row), *(ranked_text(f["iou"][row]) for f in families)] for row in families[0]["iou"]]
    note = "Mean over seeds ± half of the 95 % Student-t interval; in brackets the rank in the class."
    return make_section("Approach to approach: test IoU", ["Class", *(f["title"] for f in families)], rows, [note])


def ranked_text(cell: dict[str, Any]) -> str:
    """Return a mean with half its interval and its rank, or "absent"."""
    if cell["value"] is None:
        return "absent"
    spread = "" if cell["low"] is None else f" ± {cell['high'] - cell['value']:.4f}"
    return f"{cell['value']:.4f}{spread} ({cell['rank']})"


def pairs_section(comparison: dict[str, Any], titles: dict[str, str]) -> Section:
    """List the difference in mIoU of every two approaches."""
    pairs = {f"{titles[p['approach']]} − {titles[p['reference']]}": p for p in comparison["between_approaches"]}
    rows = [[text, *difference_cells(pair["iou"]["mean"])] for text, pair in pairs.items()]
    notes = [
        method_note(comparison, len(pairs)),
        *(f"{text}: {significance_note(pair['iou'])}" for text, pair in pairs.items()),
    ]
    header = ["Approaches", "Difference", "95 % interval", "p (Holm)"]
    return make_section("Approach to approach: differences in mIoU", header, rows, notes)


def boundary_section(comparison: dict[str, Any]) -> Section:
    """List every family's IoU and boundary IoU."""
    families = comparison["families"]
    header = ["Class", *(text for f in families for text in (f["title"], "boundary"))]
    rows = [
        [
            row_name(row, BOUNDARY_MEANS),
            *(number(f[measure][row]["value"]) for f in families for measure in ("iou", "boundary_iou")),
        ]
        for row in families[0]["iou"]
    ]
    note = (
        "Of each family IoU, then boundary IoU, which counts the rims of the masks only, "
        "2 % of the image's diagonal wide (Cheng et al., 2021)."
    )
    return make_section("IoU and boundary IoU", header, rows, [note])


def boundary_gain_section(comparison: dict[str, Any], titles: dict[str, str]) -> Section:
    """List every approach's improvement of boundary IoU over the baseline."""
    differences = comparison["against_baseline"]
    header = ["Class", *(titles[d["approach"]] for d in differences)]
    rows = [
        [
            row_name(row, BOUNDARY_MEANS),
            *(f"{signed(cell['value'])}{star(cell)}" for cell in (d["boundary_iou"][row] for d in differences)),
        ]
        for row in differences[0]["boundary_iou"]
    ]
    note = f"* distinguishable from zero at these seeds (corrected p below {ALPHA}); no other is."
    return make_section(f"Improvement of boundary IoU over {titles[BASELINE]}", header, rows, [note])


def point_section(comparison: dict[str, Any]) -> Section:
    """List the searched settings with which each family was trained."""
    families = comparison["families"]
    settings = sorted({key for family in families for key in family["point"]})
    rows = [[key, *(f"{f['point'][key]:.4g}" if key in f["point"] else "" for f in families)] for key in settings]
    return make_section("Points", ["Setting", *(f["title"] for f in families)], rows)


def star(cell: dict[str, Any]) -> str:
    """Return a star for a significant difference, else nothing."""
    return " *" if cell["verdict"] in ("higher", "lower") else ""


def row_name(row: str, means: Mapping[str, str] = MEANS) -> str:
    """Return the name of a row: of a mean, or of a class by its key."""
    return means.get(row) or display_name(row)


def number(value: float | None) -> str:
    """Return a score in [0, 1] as text, or "absent"."""
    return "absent" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign, or "-"."""
    return "-" if value is None else f"{value:+.4f}"


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
