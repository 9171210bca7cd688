"""Draw the charts of a study from its summary, each as a figure without pyplot's global state."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fgseg.labels import display_name
from search.ledger.records import State, TrialRecord
from search.report.chart_points import Mark, Point, place
from search.report.summary import Summary
from search.study.space import Range

INK, SOFT, FAINT = "#1c2733", "#6b7885", "#d9dee3"
BEST, FAILED = "#0062be", "#de5400"
"""Blue and vermilion, as in `fgseg.visual.label_images`."""
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
"""Box behind a number that lies on a line."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.dpi": 150,
}
CLASS_COLUMNS, CLASS_PANEL_IN = 3, 3.0
"""Panels in a row of the chart of the classes, and the height of a row in inches."""
MATRIX_CLASSES = 10
"""Classes of a confusion matrix of half the page's width; one of more classes is enlarged, so that its numbers fit."""
HALF_IN, WHOLE_IN = (6.2, 3.7), (12.6, 4.4)
"""Width and height in inches of a chart of half and of full page width."""
CROWDED = 8
"""Settings beside one another in `parallel` above which their names are broken at every word, so as not to overlap."""


def png(draw: Callable[[], Figure], marks: Sequence[Mark] = ()) -> tuple[bytes, tuple[Point, ...]]:
    """Draw a chart in the report's style.

    Args:
        draw: draws it.
        marks: of its points.

    Returns:
        A PNG file, and the places of the marks in it.
    """
    with rc_context(STYLE):
        figure, buffer = draw(), BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue(), tuple(place(figure, mark) for mark in marks)


def history(summary: Summary, baseline: float | None) -> Figure:
    """Plot the mIoU of every trial by number, and the best so far.

    Args:
        summary: of the study.
        baseline: best mIoU of the baseline family, drawn as a line; None for no line.
    """
    figure = Figure(HALF_IN, layout="constrained")
    axes = figure.subplots()
    marks = {State.COMPLETE: ("o", BEST, "finished"), State.PRUNED: ("v", SOFT, "stopped early")}
    for state, (mark, tone, name) in marks.items():
        ended = [t for t in summary.trials if t.state is state and t.epochs]
        if ended:
            values = [summary.last_value(t) for t in ended]
            axes.plot([t.number for t in ended], values, mark, color=tone, label=name, markersize=6)
    failed = [t.number for t in summary.trials if t.state is State.FAIL]
    if failed:
        axes.plot(failed, [0] * len(failed), "x", color=FAILED, label="failed", clip_on=False, zorder=5)
    path = best_so_far(summary)
    if path:
        axes.step(*zip(*path, strict=True), where="post", color=INK, linewidth=1.2, label="best so far")
    for value, name, dash in (
        (summary.untrained_value, "untrained checkpoint", "-."),
        (summary.start and summary.start.value, "start point", "--"),
        (baseline, "baseline", ":"),
    ):
        if value:
            axes.axhline(value, color=SOFT, linestyle=dash, linewidth=1.2, label=name)
    axes.set(xlabel="trial", ylabel=f"validation {summary.objective}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=0 if failed else None)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def best_so_far(summary: Summary) -> list[tuple[int, float]]:
    """Return (trial number, highest mIoU up to this trial) by number; the last point is at the last trial."""
    path: list[tuple[int, float]] = []
    for t in sorted(summary.ranked, key=lambda t: t.number):
        path.append((t.number, max(t.value or 0, path[-1][1] if path else 0)))
    return [*path, (max(t.number for t in summary.trials), path[-1][1])] if path else []


def importances(shares: Mapping[str, float], objective: str) -> Figure:
    """Plot the share of an objective's variance, in [0, 1], that each setting explains."""
    figure = Figure(HALF_IN, layout="constrained")
    axes = figure.subplots()
    names, values = list(shares)[::-1], [100 * v for v in list(shares.values())[::-1]]
    bars = axes.barh(names, values, color=BEST, height=0.62)
    axes.bar_label(bars, [f"{v:.0f} %" for v in values], padding=4, color=INK)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"share of the variance of the {objective} (%)", xlim=(0, max(values) * 1.18))
    return figure


def slices(summary: Summary, keys: Sequence[str]) -> Figure:
    """Plot the mIoU of the finished trials against each of the settings `keys`."""
    figure = Figure((HALF_IN[0], 5.2), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        scatter(axes, summary, key)
    panels[0].set_ylabel(f"validation {summary.objective}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def scatter(axes: Axes, summary: Summary, key: str) -> None:
    """Draw one panel of `slices`."""
    r = summary.ranges[key]
    points = [(r.position(t.params[key]), t.value or 0, t) for t in summary.ranked if key in t.params]
    others = [(x, y) for x, y, t in points if t is not summary.best and t.number != 0]
    if others:
        axes.plot(*zip(*others, strict=True), "o", color=SOFT, alpha=0.75, label="trials")
    for x, y, t in points:
        if t.number == 0:
            axes.plot(x, y, "D", color=INK, label="start", markersize=7)
        if summary.best and t.number == summary.best.number:
            axes.plot(x, y, "*", color=BEST, label="best", markersize=14)
    if r.log:
        axes.set_xscale("log")
    axes.set_xlim(r.low / 1.08 if r.log else r.low - 0.03 * (r.high - r.low), r.high * 1.08 if r.log else None)
    axes.set_xlabel(key)
    plain_ticks(axes, r)


def plain_ticks(axes: Axes, r: Range) -> None:
    """Label the axis of a setting at `ticks`, as plain numbers; its lowest value as "off" if it can be switched off."""
    if r.off_below is None:
        shown = {tick: f"{tick:g}" for tick in ticks(r)}
    else:
        shown = {r.low: "off"} | {tick: f"{tick:g}" for tick in ticks(r) if tick >= r.off_below}
    axes.set_xticks([*shown], [*shown.values()])
    axes.set_xticks([], minor=True)


def ticks(r: Range) -> list[float]:
    """Return 2 to 6 round values within a setting's range: 1, 2 or 5 times a power of ten if its scale is log."""
    if not r.log:
        return [float(f"{r.low + k * (r.high - r.low) / 4:.3g}") for k in range(5)]
    low, high = math.floor(math.log10(r.low)), math.ceil(math.log10(r.high))
    fine = [m * 10.0**p for p in range(low, high + 1) for m in (1, 2, 5) if r.low <= m * 10.0**p <= r.high]
    coarse = [v for v in fine if f"{v:e}"[0] == "1"]
    shown = coarse if len(coarse) > 3 else fine[:: -(-len(fine) // 5) or 1]
    return shown if len(shown) > 1 else [r.low, r.high]


def parallel(summary: Summary) -> Figure:
    """Plot every finished trial as a line through its settings to its mIoU; a darker line has a higher mIoU."""
    figure = Figure(WHOLE_IN, layout="constrained")
    axes = figure.subplots()
    keys = list(summary.ranges)
    values = [t.value or 0 for t in summary.ranked]
    low, high = min(values), max(values)
    for t in reversed(summary.ranked):
        if any(key not in t.params for key in keys):
            continue
        share = (t.value - low) / (high - low) if t.value is not None and high > low else 1.0
        heights = [summary.ranges[key].share(t.params[key]) for key in keys]
        best = t is summary.ranked[0]
        tone = BEST if best else str(0.82 - 0.5 * share)
        axes.plot([*heights, share], color=tone, linewidth=3 if best else 1.4, zorder=3 if best else 2 + share)
        if t.number == 0:
            axes.plot([*heights, share], "D", color=INK, markersize=5, zorder=4)
    for at, key in enumerate(keys):
        r = summary.ranges[key]
        mark_axis(axes, at, f"{r.low:.3g}" if r.off_below is None else "off", f"{r.high:.3g}")
    mark_axis(axes, len(keys), f"{low:.3g}", f"{high:.3g}")
    lines = "[._]" if len(keys) > CROWDED else "[.]"
    axes.set_xticks(
        range(len(keys) + 1), [*(re.sub(lines, "\n", key) for key in keys), f"validation\n{summary.objective}"]
    )
    axes.set(yticks=[], ylim=(-0.09, 1.09), xlim=(-0.35, len(keys) + 0.35))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", color=SOFT, linewidth=1)
    return figure


def mark_axis(axes: Axes, at: float, low: str, high: str) -> None:
    """Label the ends of one axis of `parallel`."""
    for height, text, location in ((-0.035, low, "top"), (1.035, high, "bottom")):
        axes.text(at, height, text, ha="center", va=location, color=INK, fontsize=9.5, bbox=PAPER)


def class_curves(summary: Summary, count: int = 5) -> Figure:
    """Plot IoU by epoch, one panel a class, for the best `count` trials and the start point."""
    rows = math.ceil(len(summary.foreground) / CLASS_COLUMNS)
    figure = Figure((WHOLE_IN[0], CLASS_PANEL_IN * rows), layout="constrained")
    panels = figure.subplots(rows, CLASS_COLUMNS, sharex=True, squeeze=False)
    others = [t for t in summary.ranked if t is not summary.best and t.number != 0][: count - 1]
    tones = ["#5b8fc9", "#93b1d1", "#a9b4bf", "#c3cad1"]
    for axes, key in zip(panels.flat, summary.foreground, strict=False):
        for t, tone in reversed(list(zip(others, tones, strict=False))):
            curve(axes, t, key, color=tone, linewidth=1.6, label=f"trial {t.number:03d}")
        if summary.start is not None and summary.start.number != summary.ranked[0].number:
            curve(axes, summary.start, key, color=INK, linewidth=1.4, linestyle="--", label="start (trial 000)")
        best = summary.ranked[0]
        curve(axes, best, key, color=BEST, linewidth=2.6, label=f"best (trial {best.number:03d})")
        axes.set_title(display_name(key), loc="left", fontsize=11, fontweight="bold")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels.flat[len(summary.foreground) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    figure.supylabel("validation IoU", fontsize=10.5)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=6)
    return figure


def curve(axes: Axes, trial: TrialRecord, key: str, **style: Any) -> None:
    """Plot the IoU of one class of one trial by epoch."""
    epochs = [e.epoch for e in trial.epochs]
    axes.plot(epochs, [e.iou.get(key, math.nan) for e in trial.epochs], marker="o", markersize=3.5, **style)


def confusion(summary: Summary) -> Figure:
    """Plot the best trial's confusion matrix in percent of each class's true pixels (rows: truth)."""
    epoch = summary.epoch(summary.best)
    assert epoch is not None  # the best trial has epochs
    shares = [[100 * n / sum(row) if sum(row) else math.nan for n in row] for row in epoch.confusion]
    enlarged = max(1.0, len(shares) / MATRIX_CLASSES)
    figure = Figure((enlarged * HALF_IN[0], enlarged * 5.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            text = "" if math.isnan(share) else f"{share:.0f}" if share >= 0.5 else "·"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 55 else INK)
    names = [display_name(key) for key in summary.classes]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
