"""Locate the trials in the pictures of charts, so that a page can name them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from search.ledger.records import State
from search.report.summary import Summary


@dataclass(frozen=True)
class Mark:
    """A point of a chart that stands for a trial."""

    panel: int
    """Index of the axes in the figure."""
    x: float
    y: float
    """In the units of the axes."""
    text: str


@dataclass(frozen=True)
class Point:
    """Where a mark lies in the picture: shares of its width and height from the upper left, in [0, 1]."""

    left: float
    top: float
    text: str


def place(figure: Figure, mark: Mark) -> Point:
    """Return where a mark lies in a figure that has been drawn."""
    at = figure.axes[mark.panel].transData.transform((mark.x, mark.y))
    left, bottom = at / figure.bbox.size
    return Point(float(left), float(1 - bottom), mark.text)


def history_marks(summary: Summary) -> list[Mark]:
    """Return the trials that `history` shows at their values."""
    ended = [t for t in summary.trials if t.state in {State.COMPLETE, State.PRUNED} and t.epochs]
    values = [summary.last_value(t) for t in ended]
    return [
        Mark(0, t.number, value, f"trial {t.number:03d}: {summary.objective} {value:.4f}")
        for t, value in zip(ended, values, strict=True)
    ]


def slice_marks(summary: Summary, keys: Sequence[str]) -> list[Mark]:
    """Return the trials that `slices` shows in each panel."""
    return [
        Mark(
            panel,
            summary.ranges[key].position(t.params[key]),
            t.value or 0,
            f"trial {t.number:03d}: {key} {t.params[key]:.4g}, {summary.objective} {t.value:.4f}",
        )
        for panel, key in enumerate(keys)
        for t in summary.ranked
        if key in t.params
    ]
