"""A comparison as people read it: the same tables on the terminal and as Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from fgseg.labels import FOREGROUND
from search.compare.scores import ALPHA, BASELINE

ROW_NAMES = {c.key: c.name for c in FOREGROUND}
SHOWN = (
    *("data.reader", "data.height", "data.width", "data.train", "model.name"),
    *("train.epochs", "train.batch_size", "train.lr", "train.select"),
)
"""Settings that are named at the head of the page."""
WIDTH = 120
"""Columns of text where no terminal says how many it has."""
MEANS = ("mIoU", "mean")
"""What the last row of a table is called."""


@dataclass(frozen=True)
class Page:
    """One table with its heading and what is to be said about it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def markdown(comparison: dict[str, Any]) -> str:
    """The comparison as a Markdown page."""
    lines = [f"# Comparison {comparison['name']}", "", *introduction(comparison), ""]
    for page in pages(comparison):
        bold = [[f"**{cell}**" for cell in cells] if cells[0] in MEANS else cells for cells in page.rows]
        rules = markdown_row([":---", *["---:"] * (len(page.header) - 1)])
        lines += [f"## {page.title}", "", markdown_row(page.header), rules, *map(markdown_row, bold), ""]
        lines += [line for note in page.notes for line in (note, "")]
    return "\n".join(lines)


def markdown_row(texts: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def print_tables(comparison: dict[str, Any], console: Console) -> None:
    """The same on the terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    for line in introduction(comparison):
        console.print(line, highlight=False, markup=False)
    for page in pages(comparison):
        console.print(f"\n{page.title}", style="bold", highlight=False, markup=False)
        table = Table(box=None, pad_edge=False)
        for i, column in enumerate(page.header):
            table.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for cells in page.rows:
            table.add_row(*cells, style="bold" if cells[0] in MEANS else None)
        console.print(table)
        for note in page.notes:
            console.print(note, highlight=False, markup=False)


def introduction(comparison: dict[str, Any]) -> list[str]:
    """What was compared, and what is missing."""
    settings, seeds = comparison["settings"], comparison["seeds"]
    first = settings.get("train.seed", 0)
    numbers = ", ".join(str(first + seed) for seed in seeds)
    point = "the start of its space" if comparison["point"] == "start" else "the best point of its study"
    lines = [
        f"Every family at {point}, trained with {count(len(seeds), 'seed')} ({numbers}) "
        f"and judged on {count(comparison['images'], 'test frame')} that no search has seen.",
        "Settings: " + ", ".join(f"{key}={settings[key]}" for key in SHOWN if key in settings) + ".",
        f"Command: `{comparison['command']}`",
        *([f"Best points: {'; '.join(comparison['origins'])}."] if comparison["origins"] else []),
        *(f"Left out: {text}." for text in comparison["missing"]),
    ]
    if len(seeds) < 2:
        lines.append("With one seed no interval and no p-value can be given: any difference may be the seed's luck.")
    return [text for line in lines for text in (line, "")][:-1]


def pages(comparison: dict[str, Any]) -> Iterator[Page]:
    """Every table, the source's own first."""
    titles = {family["space"]: family["title"] for family in comparison["families"]}
    scores = {family["space"]: family for family in comparison["families"]}
    for difference in comparison["against_baseline"]:
        yield improvement_page(difference, scores, titles, comparison)
    if len(titles) > 1:
        yield ranking_page(comparison)
    if comparison["between_approaches"]:
        yield pairs_page(comparison, titles)
    yield boundary_page(comparison)
    if comparison["against_baseline"]:
        yield boundary_gain_page(comparison, titles)
    yield point_page(comparison)


def improvement_page(
    difference: dict[str, Any], scores: dict[str, Any], titles: dict[str, str], comparison: dict[str, Any]
) -> Page:
    """The source's table of one approach: Baseline, Approach, Improvement; and what the improvement is worth."""
    approach, reference = difference["approach"], difference["reference"]
    rows = [
        [
            name(row),
            number(scores[reference]["iou"][row]["value"]),
            number(scores[approach]["iou"][row]["value"]),
            *judged(cell),
        ]
        for row, cell in difference["iou"].items()
    ]
    header = ["Class", titles[reference], titles[approach], "Improvement", "95 % interval", "p (Holm)"]
    notes = [method(comparison, len(comparison["against_baseline"])), summary(difference["iou"])]
    return Page(f"{titles[approach]} against {titles[reference]}", header, rows, notes)


def judged(cell: dict[str, Any]) -> list[str]:
    """A difference, its interval and its corrected p-value."""
    interval = "-" if cell["low"] is None else f"{cell['low']:+.4f} to {cell['high']:+.4f}"
    return [signed(cell["value"]), interval, "-" if cell["p_holm"] is None else p_value(cell["p_holm"])]


def method(comparison: dict[str, Any], tests: int) -> str:
    """How intervals and p-values were made."""
    seeds = len(comparison["seeds"])
    if seeds < 2:
        return "One seed: no interval can be given."
    drawn = f"{count(seeds, 'seed')} and {count(comparison['images'], 'frame')}"
    return (
        f"Paired bootstrap over {drawn} ({comparison['resamples']} resamples), Student's t; "
        f"p corrected for {count(tests, 'comparison')} per row (Holm), the intervals are not."
    )


def summary(cells: dict[str, Any]) -> str:
    """What the differences of one approach say, in words."""
    clear = [f"{name(row)} {signed(c['value'])}" for row, c in cells.items() if row in ROW_NAMES and mark(c)]
    classes = f"Of the classes, distinguishable from zero: {', '.join(clear) or 'none'}."
    return f"mIoU {reading(cells['mean'])}. {classes if cells['mean']['p'] is not None else ''}".rstrip()


def reading(cell: dict[str, Any]) -> str:
    """What a difference is worth, in words."""
    words = {
        "not distinguishable": "is not distinguishable from zero at these seeds",
        "unknown": "may be the luck of the only seed",
        "higher": "is a gain",
        "lower": "is a loss",
    }
    return f"{signed(cell['value'])} {words.get(cell['verdict'], 'cannot be told')}"


def ranking_page(comparison: dict[str, Any]) -> Page:
    """Approach to approach: every family's mean IoU with its interval over seeds, and its rank in each class."""
    families = comparison["families"]
    rows = [[name(row), *(ranked(f["iou"][row]) for f in families)] for row in families[0]["iou"]]
    note = "Mean over seeds ± half of the 95 % Student-t interval; in brackets the rank in the class."
    return Page("Approach to approach: test IoU", ["Class", *(f["title"] for f in families)], rows, [note])


def ranked(cell: dict[str, Any]) -> str:
    """A mean with its interval and rank."""
    if cell["value"] is None:
        return "absent"
    spread = "" if cell["low"] is None else f" ± {cell['high'] - cell['value']:.4f}"
    return f"{cell['value']:.4f}{spread} ({cell['rank']})"


def pairs_page(comparison: dict[str, Any], titles: dict[str, str]) -> Page:
    """The difference in mIoU between any two approaches."""
    pairs = {f"{titles[p['approach']]} − {titles[p['reference']]}": p for p in comparison["between_approaches"]}
    rows = [[text, *judged(pair["iou"]["mean"])] for text, pair in pairs.items()]
    notes = [method(comparison, len(pairs)), *(f"{text}: {summary(pair['iou'])}" for text, pair in pairs.items())]
    header = ["Approaches", "Difference", "95 % interval", "p (Holm)"]
    return Page("Approach to approach: differences in mIoU", header, rows, notes)


def boundary_page(comparison: dict[str, Any]) -> Page:
    """Boundary IoU beside IoU."""
    families = comparison["families"]
    header = ["Class", *(text for f in families for text in (f["title"], "boundary"))]
    rows = [
        [name(row), *(number(f[measure][row]["value"]) for f in families for measure in ("iou", "boundary_iou"))]
        for row in families[0]["iou"]
    ]
    rows[-1][0] = "mean"
    note = (
        "Of each family IoU, then boundary IoU, which counts the rims of the masks only, "
        "2 % of the image's diagonal wide (Cheng et al., 2021)."
    )
    return Page("IoU and boundary IoU", header, rows, [note])


def boundary_gain_page(comparison: dict[str, Any], titles: dict[str, str]) -> Page:
    """Improvements over the baseline in boundary IoU."""
    differences = comparison["against_baseline"]
    header = ["Class", *(titles[d["approach"]] for d in differences)]
    rows = [
        [name(row), *(f"{signed(cell['value'])}{mark(cell)}" for cell in (d["boundary_iou"][row] for d in differences))]
        for row in differences[0]["boundary_iou"]
    ]
    rows[-1][0] = "mean"
    note = f"* distinguishable from zero at these seeds (corrected p below {ALPHA}); no other is."
    return Page(f"Improvement of boundary IoU over {titles[BASELINE]}", header, rows, [note])


def point_page(comparison: dict[str, Any]) -> Page:
    """The point at which each family was trained."""
    families = comparison["families"]
    settings = sorted({key for family in families for key in family["point"]})
    rows = [[key, *(f"{f['point'][key]:.4g}" if key in f["point"] else "" for f in families)] for key in settings]
    return Page("Points", ["Setting", *(f["title"] for f in families)], rows)


def mark(cell: dict[str, Any]) -> str:
    """A star for a difference that counts."""
    return " *" if cell["verdict"] in ("higher", "lower") else ""


def name(row: str) -> str:
    """A row's name in the tables of IoU."""
    return ROW_NAMES.get(row, "mIoU")


def number(value: float | None) -> str:
    """A score as text."""
    return "absent" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference as text."""
    return "-" if value is None else f"{value:+.4f}"


def p_value(p: float) -> str:
    """A p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
