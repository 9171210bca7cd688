"""What a study found: the best trial against the family's starting point, for the terminal and as report.md."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fgseg.epoch import EpochResult, select_epoch, show
from fgseg.labels import FOREGROUND
from search.ledger import Ledger, State, TrialRecord
from search.plan import Plan


@dataclass(frozen=True)
class Summary:
    """A study in figures; `start` is the source's point and `best` the trial with the highest selected mIoU."""

    plan: Plan
    start: TrialRecord | None
    best: TrialRecord
    trials: list[TrialRecord]

    def epoch(self, record: TrialRecord | None) -> EpochResult | None:
        """The epoch that stands for a trial."""
        return select_epoch(record.epochs, self.plan.run.train.select) if record and record.epochs else None

    def scores(self) -> list[tuple[str, float | None, float]]:
        """Rows of class name, the start's IoU and the best trial's IoU; the last row is the mIoU."""
        start, best = self.epoch(self.start), self.epoch(self.best)
        assert best is not None  # a COMPLETE trial has epochs
        rows = [(c.name, start.iou[c.key] if start else None, best.iou[c.key]) for c in FOREGROUND]
        return [*rows, ("mIoU", start.miou if start else None, best.miou)]

    def point(self) -> list[tuple[str, float, float]]:
        """Rows of setting, the start's value and the best trial's value."""
        return [
            (key, r.start, self.best.params[key])
            for key, r in self.plan.space.search.items()
            if key in self.best.params
        ]


def summarise(plan: Plan, ledger: Ledger) -> Summary | None:
    """The figures of a study, or None while no trial has finished."""
    trials, best = ledger.trials(), ledger.best()
    if best is None:
        return None
    start = next((t for t in trials if t.number == 0 and t.state is State.COMPLETE), None)
    return Summary(plan, start, best, trials)


def score_table(summary: Summary) -> Table:
    """The closing table of a run."""
    table = Table(title=f"{summary.plan.study}: {title(summary)}", title_justify="left")
    table.add_column("validation IoU")
    for column in ("start (trial 000)", f"best (trial {summary.best.number:03d})", "difference"):
        table.add_column(column, justify="right")
    for name, start, best in summary.scores():
        table.add_row(*cells(name, start, best), style="bold" if name == "mIoU" else None)
    return table


def title(summary: Summary) -> str:
    """How many trials ended in which way."""
    names = {State.COMPLETE: "finished", State.PRUNED: "stopped early", State.FAIL: "failed", State.RUNNING: "open"}
    counts = {name: sum(t.state is state for t in summary.trials) for state, name in names.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def cells(name: str, start: float | None, best: float) -> list[str]:
    """A row of the closing table as texts."""
    before = "-" if start is None else show(start)
    difference = "-" if start is None or math.isnan(best - start) else f"{best - start:+.4f}"
    return [name, before, show(best), difference]


def markdown(summary: Summary) -> str:
    """The report as Markdown: scores, the best point, every trial."""
    space = summary.plan.space
    lines = [f"# {summary.plan.study}", "", f"{space.title} (`{space.name}`): {title(summary)}.", ""]
    lines += [f"| validation IoU | start (trial 000) | best (trial {summary.best.number:03d}) | difference |"]
    lines += ["| :--- | ---: | ---: | ---: |", *(row(cells(*score)) for score in summary.scores()), ""]
    if summary.point():
        lines += ["| setting | start | best |", "| :--- | ---: | ---: |"]
        lines += [row([f"`{key}`", f"{start:.4g}", f"{best:.4g}"]) for key, start, best in summary.point()]
    lines += ["", "| trial | state | epochs | validation mIoU | reason |", "| ---: | :--- | ---: | ---: | :--- |"]
    for t in summary.trials:
        score = "-" if t.value is None else f"{t.value:.4f}"
        lines.append(row([f"{t.number:03d}", str(t.state), str(len(t.epochs)), score, t.reason or ""]))
    return "\n".join(lines) + "\n"


def row(texts: list[str]) -> str:
    """A Markdown table row."""
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def write_report(summary: Summary, folder: Path) -> Path:
    """Write report.md into a local folder, from which it goes to the study's; returns its path."""
    path = folder / "report.md"
    path.write_text(markdown(summary), encoding="utf-8")
    return path
