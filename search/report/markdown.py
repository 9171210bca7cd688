"""Render a study's report as a Markdown file that lies beside its pictures."""

from fgseg.tables import Table
from search.report.content import Content
from search.report.tables import best_tables, cost_figures, failure_table, params_table, trial_table


def render_markdown(content: Content) -> str:
    """Render the report; pictures are named `frame-<number>.png` and `<chart>.png`."""
    summary = content.summary
    lines = [f"# {summary.study}", "", f"{summary.title} (`{summary.space}`): {summary.endings()}."]
    lines += [f"\n{note}" for note in content.notes]
    if summary.best is not None:
        lines += section_lines(best_tables(summary, content.baseline))
        lines += ["", "## Where best and start differ", "", content.frames.note]
        for k, frame in enumerate(content.frames.shown, 1):
            lines.append(f"\n![{frame.name}: {', '.join(frame.panels())}](frame-{k}.png)")
        for chart in content.charts:
            lines += ["", f"## {chart.title}", "", chart.caption, "", f"![{chart.alt}]({chart.name}.png)"]
    lines += ["", "## Cost", "", *(f"- {name}: {value}" for name, value in cost_figures(summary).items())]
    lines += section_lines([failure_table(summary), trial_table(summary), params_table(summary)])
    return "\n".join(lines) + "\n"


def section_lines(tables: list[Table]) -> list[str]:
    """Return the lines of the tables, each below a heading; a table without rows or with one column is left out."""
    return [f"\n## {t.title}\n\n{t.to_markdown()}" for t in tables if t.rows and len(t.columns) > 1]
