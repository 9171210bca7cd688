"""The content of a study's report, independent of its format: charts with titles, captions and alt texts."""

from dataclasses import dataclass

from search.ledger.records import count_ended
from search.report.chart_points import Point, history_marks, slice_marks
from search.report.charts import (
    best_so_far,
    class_curves,
    confusion,
    history,
    importances,
    parallel,
    png,
    slices,
)
from search.report.frames import Frames
from search.report.summary import Baseline, Summary
from search.report.tables import expected_note
from search.sampling.importance import caution, importance


@dataclass(frozen=True)
class Chart:
    """One chart; `name` is the stem of its file, `alt` describes it to readers who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    drawn: tuple[bytes, tuple[Point, ...]]
    """The PNG file, and the places of trials in it."""
    wide: bool = False

    @property
    def png(self) -> bytes:
        """The PNG file."""
        return self.drawn[0]

    @property
    def points(self) -> tuple[Point, ...]:
        """The places of trials in the picture."""
        return self.drawn[1]


@dataclass(frozen=True)
class Content:
    """The parts of a report; `charts` is empty while no trial has finished."""

    summary: Summary
    baseline: Baseline
    frames: Frames
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]
    """Sentences that explain why a part is missing."""
    written: float
    """Unix seconds at which the report is written."""


def build_content(summary: Summary, baseline: Baseline, frames: Frames, written: float) -> Content:
    """Draw the charts for which the study has enough trials; a note explains each missing one."""
    if summary.best is None:
        return Content(
            summary, baseline, frames, (), ("No trial has finished yet, so there is nothing to show.",), written
        )
    shares = importance(summary.ranked, summary.ranges)
    charts = [history_chart(summary, baseline)]
    notes = [note for note in (*ending_notes(summary), baseline.reason, expected_note(summary)) if note]
    if shares:
        charts.append(importance_chart(summary, shares))
    else:
        notes.append(f"Parameter importance: {caution(summary.ranked, summary.ranges)}")
    if summary.ranges:
        charts.append(slice_chart(summary, list(shares)))
    charts.append(confusion_chart(summary))
    if summary.ranges:
        charts.append(parallel_chart(summary))
    charts.append(curves_chart(summary))
    return Content(summary, baseline, frames, tuple(charts), tuple(notes), written)


def ending_notes(summary: Summary) -> list[str]:
    """Explain in a sentence how the best trial was confirmed, and that the time of the study is used up."""
    notes = []
    if (found := summary.confirmation) is not None and summary.best is not None:
        notes.append(
            f"Trial {found.trial:03d} was confirmed by {found.seeds} repeats with other seeds: {summary.objective} "
            f"{found.mean:.4f} on average, at least {found.low:.4f} (95 % interval); in the search it had "
            f"{summary.best.value:.4f}."
        )
    if not summary.limit:
        return notes
    flag, ended = summary.limit.replace("_", "-"), count_ended(summary.trials)
    return [
        *notes,
        f"The search ended with its time (--{flag} {summary.limits[summary.limit]:g}) after {ended} trials.",
    ]


def history_chart(summary: Summary, baseline: Baseline) -> Chart:
    """Chart the first objective of all trials."""
    rival = baseline.summary.best.chosen if baseline.summary and baseline.summary.best else None
    other = None if rival is None else summary.value(rival)
    path = best_so_far(summary)
    rise = f"the best so far goes from {path[0][1]:.4f} to {path[-1][1]:.4f}"
    alt = f"{summary.objective} of {len(summary.trials)} trials; {rise}."
    caption = f"Each trial's validation {summary.objective}, and the best so far."
    drawn = png(lambda: history(summary, other), history_marks(summary))
    return Chart("history", "Optimisation history", caption, alt, drawn)


def importance_chart(summary: Summary, shares: dict[str, float]) -> Chart:
    """Chart the importance of the settings."""
    alt = "Share of the variance by setting: " + ", ".join(f"{key} {100 * v:.0f} %" for key, v in shares.items()) + "."
    drawn = png(lambda: importances(shares, summary.objective))
    return Chart("importance", "Parameter importance", caution(summary.ranked, summary.ranges), alt, drawn)


def slice_chart(summary: Summary, important: list[str]) -> Chart:
    """Chart the value against two settings: the most important ones, or the first ones if `important` is empty."""
    keys = (important or list(summary.ranges))[:2]
    which = "only searched" if len(keys) == 1 else "two most important" if important else "first two"
    caption = f"Finished trials by the {which} setting{'s' * (len(keys) > 1)}."
    alt = f"Validation {summary.objective} against {' and '.join(keys)}, one point a trial."
    return Chart("slices", "Slices", caption, alt, png(lambda: slices(summary, keys), slice_marks(summary, keys)))


def parallel_chart(summary: Summary) -> Chart:
    """Chart all finished trials in parallel coordinates."""
    start = "; black diamonds are the start point" if summary.start else ""
    caption = f"Every finished trial: the best in blue, of the others the darker the better{start}."
    alt = f"Lines of {len(summary.ranked)} trials through {len(summary.ranges)} settings to their {summary.objective}."
    drawn = png(lambda: parallel(summary))
    return Chart("parallel", "Parallel coordinates", caption, alt, drawn, wide=True)


def confusion_chart(summary: Summary) -> Chart:
    """Chart the best trial's confusion matrix."""
    best = summary.best
    assert best is not None  # as in build_content
    drawn = png(lambda: confusion(summary))
    caption = (
        f"Trial {best.number:03d}: of every 100 true pixels of a class (row), how many become which class (column)."
    )
    return Chart("confusion", "Confusion matrix of the best trial", caption, caption, drawn)


def curves_chart(summary: Summary) -> Chart:
    """Chart the IoU of each class over the epochs."""
    count = min(5, len(summary.ranked))
    caption = (
        f"Validation IoU after each epoch: the best {'trial' if count == 1 else f'{count} trials'} and the start point."
    )
    drawn = png(lambda: class_curves(summary))
    return Chart("classes", "Classes over the epochs", caption, caption, drawn, wide=True)
