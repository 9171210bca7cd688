"""The tables of a study's report, which the page, the Markdown file and the end of a run show."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from fgseg.labels import display_name
from fgseg.results import format_iou
from fgseg.tables import Row, Table
from search.ledger.records import State, TrialRecord
from search.report.summary import ENDINGS, Baseline, Summary
from search.study.objective import objective_name, value_of

CHECKPOINT_NAME = "checkpoint, untrained"
"""Name of the untrained checkpoint in tables."""


def best_tables(summary: Summary, baseline: Baseline) -> list[Table]:
    """Return the tables of the best trial's scores and settings; none while no trial has finished.

    Its scores are compared with the untrained checkpoint and the start point, and with the baseline's best trial if
    there is one.
    """
    if summary.best is None:
        return []
    best = f"Best (trial {summary.best.number:03d})"
    checkpoint = "the untrained checkpoint and " if summary.untrained else ""
    title = f"{best} against {checkpoint}the start point (trial 000)"
    tables = [score_table(summary, references(summary, "start"), title, "best")]
    other = baseline.summary
    if other is not None and other.best is not None:
        title = f"{best} against the best of {other.study} (trial {other.best.number:03d})"
        tables.append(score_table(summary, {"baseline": other.score(other.best)}, title, "best"))
    tables += [constraint_table(summary), front_table(summary)]
    return [table for table in (*tables, searched_table(summary), fixed_table(summary)) if table.rows]


def constraint_table(summary: Summary) -> Table:
    """Compare the best trial with the best one without the constraint; no rows without a constraint."""
    constraint, trials = summary.constraint, (summary.best, summary.unconstrained)
    rows = [
        Row([display_name(key), f"{floor:.4f}", *(cell(summary.score(t).get(key)) for t in trials)])
        for key, floor in constraint.floors.items()
    ]
    if rows:
        values = (t.value if t else None for t in trials)
        rows.append(Row([summary.objective, "", *map(cell, values)], "strong"))
    kept = "kept by" if summary.best is not None and summary.keeps(summary.best) else "kept by no trial, nor by"
    title = (
        f"Constraint: at most {constraint.max_drop:g} below {constraint.reference}, "
        f"{kept} trial {summary.best.number if summary.best else 0:03d}"
    )
    names = [f"{name} (trial {t.number:03d})" for name, t in zip(("best", "without it"), trials, strict=True) if t]
    return Table(title, ["validation IoU", "at least", *names], rows)


def cell(value: float | None) -> str:
    """Return a score as text; a dash for None."""
    return "-" if value is None else format_iou(value)


def front_table(summary: Summary) -> Table:
    """List the trials of the Pareto front with both objectives; no rows with one objective."""
    rows = [
        Row([f"{t.number:03d}", *(format_iou(value_of(t.chosen, name)) for name in summary.objectives)])
        for t in summary.front
        if t.chosen is not None
    ]
    title = "Pareto front: no other trial is better in one objective and not worse in the other"
    return Table(title, ["trial", *map(objective_name, summary.objectives)], rows)


def references(summary: Summary, start_name: str) -> dict[str, dict[str, float]]:
    """Return the scores with which the best trial is compared: of the untrained checkpoint if known, and of the start.

    Args:
        summary: of a study.
        start_name: heading of the start point.
    """
    untrained = {CHECKPOINT_NAME: summary.untrained.scores} if summary.untrained else {}
    return untrained | {start_name: summary.score(summary.start)}


def score_table(summary: Summary, compared: Mapping[str, Mapping[str, float]], title: str, best_name: str) -> Table:
    """Compare the best trial's validation IoU with references, one class a row; the last rows are the means.

    Args:
        summary: of a study with a best trial.
        compared: IoU by class key, and the means, of each reference by the heading of its column; empty gives dashes.
        title: of the table.
        best_name: heading of the best trial's column.
    """
    best = summary.score(summary.best)
    names = {key: display_name(key) for key in summary.foreground} | summary.means
    rows = []
    for key, name in names.items():
        cells = score_cells([scores.get(key) for scores in compared.values()], best.get(key, math.nan))
        rows.append(Row([name, *cells], "strong" if key in summary.means else ""))
    gains = ["difference"] if len(compared) == 1 else [f"over {name.split()[0].rstrip(',')}" for name in compared]
    return Table(title, ["validation IoU", *compared, best_name, *gains], rows, signed_columns=gains)


def score_cells(compared: Sequence[float | None], best: float) -> list[str]:
    """Return the IoU of references and of the best trial, in [0, 1] or NaN, and the differences, as texts."""
    values = ["-" if value is None else format_iou(value) for value in compared]
    gains = [math.nan if value is None else best - value for value in compared]
    differences = ["-" if math.isnan(gain) else f"{gain:+.4f}".replace("-0.0000", "+0.0000") for gain in gains]
    return [*values, format_iou(best), *differences]


def searched_table(summary: Summary) -> Table:
    """List the searched settings of the start point and of the best trial."""
    rows = [Row([key, f"{start:.4g}", f"{best:.4g}"]) for key, start, best in summary.point()]
    return Table("Searched settings", ["setting", "start", "best"], rows)


def fixed_table(summary: Summary) -> Table:
    """List the main settings that all trials share: data, model, epochs and others."""
    s = summary.settings
    values = {
        "data": (
            f"{s['data.reader']}, {s['data.train']} + {s['data.val']} frames of {s['data.height']} × {s['data.width']}"
        ),
        "model": s["model.name"],
        "epochs": s["train.epochs"],
        "batch × accumulation": f"{s['train.batch_size']} × {s['train.accumulation']}",
        "learning rate": s["train.lr"],
        "epoch that counts": s["train.select"],
    }
    keys = {"learning rate": "train.lr", "batch × accumulation": "train.batch_size"}
    rows = [
        Row([name, f"{value:g}" if isinstance(value, float) else str(value)])
        for name, value in values.items()
        if keys.get(name) not in summary.ranges
    ]
    return Table("The same for all trials", ["setting", "value"], rows, text_columns=("value",))


def trial_table(summary: Summary) -> Table:
    """List every trial's state, scores and minutes; the reasons too if any trial has one."""
    scores = [*reversed(summary.means.values()), *map(display_name, summary.foreground)]
    expected = [f"expected {summary.objective}"] if summary.posterior.means else []
    columns = ["trial", "state", "epochs", scores[0], *expected, *scores[1:], "minutes"]
    columns += ["reason"] if any(t.reason for t in summary.trials) else []
    rows = [Row(trial_cells(summary, t)[: len(columns)], row_style(summary, t)) for t in summary.trials]
    return Table("All trials: scores", columns, rows, text_columns=("state", "reason"))


def trial_cells(summary: Summary, trial: TrialRecord) -> list[str]:
    """Return the cells of one row of `trial_table`, the reason last."""
    score = summary.score(trial)
    keys = (*reversed(summary.means), *summary.foreground)
    scores = [format_iou(score[key]) if key in score else "-" for key in keys]
    if means := summary.posterior.means:
        scores.insert(1, format_iou(means[trial.number]) if trial.number in means else "-")
    minutes = f"{sum(e.seconds for e in trial.epochs) / 60:.1f}"
    return [f"{trial.number:03d}", ENDINGS[trial.state], str(len(trial.epochs)), *scores, minutes, trial.reason or ""]


def expected_note(summary: Summary) -> str:
    """Describe in a sentence the trial with the highest expected objective; empty if none can be computed."""
    trial, best = summary.expected_best, summary.best
    if trial is None or best is None:
        return ""
    means = summary.posterior.means
    chosen = "the best trial has" if trial is best else f"trial {trial.number:03d} has"
    return (
        f"Highest expected {summary.objective}: {chosen} {format_iou(means[trial.number])} "
        f"(observed {format_iou(trial.value or 0.0)}); "
        + ("" if trial is best else f"the best trial has {format_iou(means.get(best.number, math.nan))}; ")
        + f"the standard deviation between trainings is estimated as {format_iou(summary.posterior.noise_std)}."
    )


def params_table(summary: Summary) -> Table:
    """List the searched settings of every trial; "-" where a trial was never given a value."""
    rows = [
        Row(
            [f"{t.number:03d}", *(f"{t.params[key]:.3g}" if key in t.params else "-" for key in summary.ranges)],
            row_style(summary, t),
        )
        for t in summary.trials
    ]
    return Table("All trials: settings", ["trial", *summary.ranges], rows)


def row_style(summary: Summary, trial: TrialRecord) -> Literal["", "best"]:
    """Highlight the best trial's row."""
    return "best" if trial is summary.best else ""


def failure_table(summary: Summary) -> Table:
    """List the failed trials and their reasons."""
    failed = [t for t in summary.trials if t.state is State.FAIL]
    rows = [Row([f"{t.number:03d}", str(len(t.epochs)), t.reason or "unknown"]) for t in failed]
    return Table("Failures", ["trial", "epochs", "reason"], rows, text_columns=("reason",))


def cost_figures(summary: Summary) -> dict[str, str]:
    """Return name and text of each figure of a study's cost."""
    cost, limits = summary.cost(), summary.limits
    used = {"max_hours": ("hours of all runs", summary.used.hours)}
    used["max_gpu_hours"] = ("GPU-hours of the budget", summary.used.gpu_hours)
    times = {name: f"{hours:.2f} of {limits[key]:g}" for key, (name, hours) in used.items() if key in limits}
    return times | {
        f"{cost.unit} of training and validation": f"{cost.amount:.2f}",
        "epochs trained": str(cost.epochs),
        "epochs saved by stopping early": str(cost.saved),
        "failed trials": str(sum(t.state is State.FAIL for t in summary.trials)),
        "worker processes that died": str(sum(t.failures for t in summary.trials)),
    }
