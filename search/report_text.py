"""A study's report as Markdown, with the pictures beside it."""

from collections.abc import Sequence

from search.report_content import Content
from search.report_tables import (
    Table,
    cost_rows,
    failure_table,
    fixed_table,
    point_table,
    score_tables,
    setting_table,
    trial_table,
)


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
