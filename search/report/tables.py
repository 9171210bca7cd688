"""The tables of a study's report, as texts: the page and the Markdown show the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fgseg.labels import FOREGROUND
from fgseg.results import format_iou
from search.ledger.records import State, TrialRecord
from search.report.content import Content
from search.report.summary import ENDINGS, Baseline, Summary, rows


@dataclass(frozen=True)
class Row:
    """Cells, and what is special about them: `strong`, `best` or nothing."""

    cells: list[str]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first `texts` columns hold text, so does the column `reason`, the others numbers."""

    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    texts: int = 1
    signed: bool = False
    """Whether cells with a sign are differences."""
    reason: int = -1


def score_tables(summary: Summary, baseline: Baseline) -> list[Table]:
    """The best trial's classes against the start point's, and against the baseline's best where there is one."""
    assert summary.best is not None  # there is nothing to compare before
    best = f"Best (trial {summary.best.number:03d})"
    title = f"{best} against the start point (trial 000)"
    tables = [score_table(title, "start", rows(summary, summary.score(summary.start)))]
    other = baseline.summary
    if other is not None and other.best is not None:
        title = f"{best} against the best of {other.study} (trial {other.best.number:03d})"
        tables.append(score_table(title, "baseline", rows(summary, other.score(other.best))))
    return tables


def score_table(title: str, other: str, cells: list[list[str]]) -> Table:
    """One comparison; the last row, the mIoU, is strong."""
    lines = [Row(row, "strong" if row[0] == "mIoU" else "") for row in cells]
    return Table(title, ["validation IoU", other, "best", "difference"], lines, signed=True)


def setting_table(summary: Summary) -> Table:
    """The searched settings of the start point and of the best trial."""
    lines = [Row([key, f"{start:.4g}", f"{best:.4g}"]) for key, start, best in summary.point()]
    return Table("Searched settings", ["setting", "start", "best"], lines)


def fixed_table(summary: Summary) -> Table:
    """What all trials share, as far as people ask for it first."""
    s = summary.settings
    size = f"{s['data.height']} × {s['data.width']}"
    batch = f"{s['train.batch_size']} × {s['train.accumulation']}"
    facts = {
        "data": f"{s['data.reader']}, {s['data.train']} + {s['data.val']} frames of {size}",
        "model": s["model.name"],
        "epochs": s["train.epochs"],
        "batch × accumulation": batch,
        "learning rate": s["train.lr"],
        "epoch that counts": s["train.select"],
    }
    searched = {"learning rate": "train.lr", "batch × accumulation": "train.batch_size"}
    lines = [Row([name, f"{v:g}" if isinstance(v, float) else str(v)]) for name, v in facts.items()]
    kept = [line for line in lines if searched.get(line.cells[0]) not in summary.ranges]
    return Table("The same for all trials", ["setting", "value"], kept, texts=2)


def trial_table(summary: Summary) -> Table:
    """Every trial: how it ended, its scores, minutes and reason."""
    columns = ["trial", "state", "epochs", "mIoU", *(c.name for c in FOREGROUND), "minutes", "reason"]
    lines = [Row(trial_cells(summary, t), "best" if t is summary.best else "") for t in summary.trials]
    if not any(t.reason for t in summary.trials):
        return Table("All trials: scores", columns[:-1], [Row(line.cells[:-1], line.kind) for line in lines], texts=2)
    return Table("All trials: scores", columns, lines, texts=2, reason=len(columns) - 1)


def trial_cells(summary: Summary, trial: TrialRecord) -> list[str]:
    """One row of `trial_table`."""
    score = summary.score(trial)
    scores = [format_iou(score[key]) if key in score else "-" for key in ("miou", *(c.key for c in FOREGROUND))]
    minutes = f"{sum(e.seconds for e in trial.epochs) / 60:.1f}"
    return [f"{trial.number:03d}", ENDINGS[trial.state], str(len(trial.epochs)), *scores, minutes, trial.reason or ""]


def point_table(summary: Summary) -> Table:
    """The settings that every trial was asked to try."""
    lines = [
        Row(
            [f"{t.number:03d}", *(f"{t.params[key]:.3g}" if key in t.params else "-" for key in summary.ranges)],
            "best" if t is summary.best else "",
        )
        for t in summary.trials
    ]
    return Table("All trials: settings", ["trial", *summary.ranges], lines)


def cost_rows(summary: Summary) -> list[tuple[str, str]]:
    """What the study took, as names and texts."""
    cost = summary.cost()
    deaths = sum(t.failures for t in summary.trials)
    return [
        (f"{cost.unit} of training and validation", f"{cost.amount:.2f}"),
        ("epochs trained", str(cost.epochs)),
        ("epochs saved by stopping early", str(cost.saved)),
        ("failed trials", str(sum(t.state is State.FAIL for t in summary.trials))),
        ("worker processes that died", str(deaths)),
    ]


def failure_table(summary: Summary) -> Table:
    """The failed trials and why."""
    failed = [t for t in summary.trials if t.state is State.FAIL]
    lines = [Row([f"{t.number:03d}", str(len(t.epochs)), t.reason or "unknown"]) for t in failed]
    return Table("Failures", ["trial", "epochs", "reason"], lines, reason=2)


def markdown(content: Content) -> str:
    """The report as Markdown, with the pictures beside it."""
    summary = content.summary
    lines = [f"# {summary.study}", "", f"{summary.title} (`{summary.space}`): {summary.endings()}."]
    lines += [f"\n{note}" for note in content.notes]
    if summary.best is not None:
        tables = [*score_tables(summary, content.baseline), setting_table(summary), fixed_table(summary)]
        lines += [text for table in tables if table.rows for text in as_text(table)]
        lines += ["", "## Where best and start differ", "", content.frames.note]
        for k, frame in enumerate(content.frames.shown, 1):
            lines.append(f"\n![{frame.name}: photo, truth, start, best, changed pixels](frame-{k}.png)")
        for chart in content.charts:
            lines += ["", f"## {chart.title}", "", chart.caption, "", f"![{chart.alt}]({chart.name}.png)"]
    lines += ["", "## Cost", "", *(f"- {name}: {value}" for name, value in cost_rows(summary))]
    for table in (failure_table(summary), trial_table(summary), point_table(summary)):
        lines += as_text(table) if table.rows and len(table.columns) > 1 else []
    return "\n".join(lines) + "\n"


def as_text(table: Table) -> list[str]:
    """A table as lines of Markdown, a heading first."""
    rules = [":---" if k < table.texts or k == table.reason else "---:" for k in range(len(table.columns))]
    head = ["", f"## {table.title}", "", row(table.columns), row(rules)]
    return [*head, *(row(line.cells) for line in table.rows)]


def row(texts: Sequence[str]) -> str:
    """A Markdown table row."""
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"
