"""The table of a study's running trials and its best trial, with as many columns as the terminal has room for."""

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fgseg.labels import display_name
from fgseg.results import EpochResult, format_iou, select_epoch
from search.console.forecast import clock
from search.console.study_status import StudyStatus
from search.ledger.records import TrialRecord
from search.ledger.time_used import Pace, moments_of, read_pace

GAP_COLUMNS = 2
"""Columns of the terminal between two columns of the table."""
SETTINGS_COLUMNS = 30
"""Columns of the terminal that must be left for the searched settings to be shown; they are cut off at its edge."""

Column = tuple[str, list[str]]
"""Heading, and a cell for each row."""
Row = tuple[TrialRecord, EpochResult | None]
"""A trial and its epoch to show: the latest, or the selected one of an ended trial; None before the first."""


def trial_table(status: StudyStatus, width: int, now: float | None, most: int | None = None) -> Group:
    """Show the running trials, and below them the best trial.

    Loss and speed, the IoU of every class, and the searched settings are shown if there is room for them.  Without room
    for the classes, those of the best trial stand below the table.

    Args:
        status: of the study.
        width: columns of the terminal.
        now: Unix seconds; None if no driver runs the study.
        most: largest number of running trials to show; by default all.
    """
    running = [record for _, record in sorted(status.running.items())]
    best, pace, length = status.best, read_pace(status.records), status.metadata.epochs
    rows: list[Row] = [(r, r.epochs[-1] if r.epochs else None) for r in running[:most]]
    left = [trial_time_left(r, pace, length, now) for r, _ in rows]
    if best is not None:
        rows.append((best, best.chosen))
        left.append("")
    columns = [
        ("trial", [f"{'best ' if record is best else ''}{record.number:03d}" for record, _ in rows]),
        ("epoch", [f"{epoch.epoch if epoch else 0}/{record.length or length}" for record, epoch in rows]),
        ("left", left),
        ("val mIoU", [format_iou(epoch.miou) if epoch else "-" for _, epoch in rows]),
    ]
    classes = class_columns([epoch for _, epoch in rows])
    for more in (detail_columns(rows), classes):
        columns += more if table_width([*columns, *more]) <= width else []
    has_classes = classes[-1:] == columns[-1:]
    if (room := width - table_width(columns) - GAP_COLUMNS) >= SETTINGS_COLUMNS:
        columns.append(settings_column([record for record, _ in rows], room))
    parts: list[RenderableType] = [to_rich(columns, rows)] if rows else []
    if hidden := len(running) - len(running[:most]):
        parts.append(Text(f"and {hidden} more running trials", style="dim"))
    if best is not None and not has_classes:
        cells = [Text(f"{name} {value}") for name, value in status.best_classes().items()]
        parts.append(Columns([Text(f"best trial {best.number:03d}", style="bold"), *cells], padding=(0, GAP_COLUMNS)))
    return Group(*parts)


def detail_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the highest mIoU, the training loss and the speed of trials."""
    shown = [(select_epoch(record.epochs, "best"), epoch) if epoch else None for record, epoch in rows]
    return [
        ("its best", [format_iou(pair[0].miou) if pair else "-" for pair in shown]),
        ("train loss", [f"{pair[1].loss:.4f}" if pair else "-" for pair in shown]),
        ("images/s", [f"{pair[1].images_per_s:.1f}" if pair else "-" for pair in shown]),
    ]


def class_columns(epochs: Sequence[EpochResult | None]) -> list[Column]:
    """Return the IoU of every class; no columns before the first epoch."""
    keys = next((list(epoch.iou) for epoch in epochs if epoch), [])
    return [(display_name(key), [format_iou(epoch.iou[key]) if epoch else "-" for epoch in epochs]) for key in keys]


def trial_time_left(record: TrialRecord, pace: Pace | None, length: int, now: float | None) -> str:
    """Return the time that an open trial needs at the pace of the study's latest epochs; "-" if unknown.

    Args:
        record: of the trial.
        pace: of the study; None before its first epoch.
        length: epochs of a trial.
        now: Unix seconds; None if the trial does not run.
    """
    if pace is None or now is None:
        return "-"
    missing = (record.length or length) - len(record.epochs)
    return clock(max(0.0, missing * pace.epoch_s - (now - moments_of(record)[-1])))


def table_width(columns: Sequence[Column]) -> int:
    """Return the width of a table in columns of the terminal."""
    return sum(max(map(len, (name, *cells))) for name, cells in columns) + GAP_COLUMNS * (len(columns) - 1)


def settings_column(records: Sequence[TrialRecord], width: int) -> Column:
    """Return the searched settings of trials, cut off at `width` columns of the terminal."""
    texts = [" ".join(f"{key}={value:g}" for key, value in record.params.items()) for record in records]
    return "settings", [text if len(text) <= width else f"{text[: width - 1]}…" for text in texts]


def to_rich(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Lay out the table; the row of an ended trial is bold."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP_COLUMNS // 2))
    for name, _ in columns:
        table.add_column(Text(name), justify="left" if name == "settings" else "right", no_wrap=True)
    for k, (record, _) in enumerate(rows):
        table.add_row(*(Text(cells[k]) for _, cells in columns), style=None if record.is_open else "bold")
    return table
