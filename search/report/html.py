"""A study's report as one HTML page that needs nothing else: style and pictures are inside."""

import base64
import html
import time
from collections.abc import Iterable, Sequence

from fgseg.labels import CLASSES, FOREGROUND
from fgseg.visual.label_images import BROKEN, MENDED, RIGHT, WRONG, encode_jpeg, encode_png
from search.ledger.records import State
from search.report.content import Chart, Content
from search.report.tables import (
    Table,
    cost_rows,
    failure_table,
    fixed_table,
    point_table,
    score_tables,
    setting_table,
    trial_table,
)


def page(content: Content) -> str:
    """The whole page."""
    summary = content.summary
    name = html.escape(summary.study)
    parts = [head(content), *(f'<p class="soft">{html.escape(note)}</p>' for note in content.notes)]
    if summary.best is not None:
        parts += [scores(content), frames(content), charts(content.charts)]
    parts += [cost(content), trials(content), foot(content)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def head(content: Content) -> str:
    """Name, endings, and the figures that people look for first."""
    summary = content.summary
    cards: list[tuple[str, str, str]] = []
    if summary.best is not None:
        cards.append(("best mIoU", f"{summary.best.value:.4f}", f"trial {summary.best.number:03d}, validation"))
        if summary.start is not None and summary.start.value is not None:
            gain = (summary.best.value or 0) - summary.start.value
            cards.append(("over the start point", f"{gain:+.4f}", f"trial 000: {summary.start.value:.4f}"))
        other = content.baseline.summary
        if other and other.best and other.best.value is not None:
            gain = (summary.best.value or 0) - other.best.value
            cards.append(("over the baseline family", f"{gain:+.4f}", f"its best: {other.best.value:.4f}"))
    cards.append(("trials", str(len(summary.trials)), summary.endings()))
    cost = summary.cost()
    cards.append(("trained", f"{cost.amount:.2f}", f"{cost.unit}, {cost.epochs} epochs"))
    shown = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}<small>{html.escape(s)}</small></dd></div>"
        for k, v, s in cards
    )
    title = f"{html.escape(summary.title)} (<code>{html.escape(summary.space)}</code>)"
    return f'<h1>{html.escape(summary.study)}</h1><p class="soft">{title}</p><dl class="cards">{shown}</dl>'


def scores(content: Content) -> str:
    """The best trial beside the start point and the baseline, and its settings."""
    shown = [
        *score_tables(content.summary, content.baseline),
        setting_table(content.summary),
        fixed_table(content.summary),
    ]
    tables = [f'<div class="scroll">{table(t)}</div>' for t in shown if t.rows]
    hint = "One run each: small differences may be chance; <code>search.compare</code> repeats them with several seeds."
    return f'<h2>The best trial</h2><p class="soft">{hint}</p><div class="pair">{"".join(tables)}</div>'


def frames(content: Content) -> str:
    """Photo, truth, both predictions and what changed, frame by frame."""
    text = [f'<h2>Where best and start differ</h2><p class="soft">{html.escape(content.frames.note)}</p>']
    if content.frames.shown:
        text.append(legend((c.name, c.colour) for c in FOREGROUND))
        text.append(
            legend((("mended", MENDED), ("broken", BROKEN), ("right in both", RIGHT), ("wrong in both", WRONG)))
        )
    for frame in content.frames.shown:
        figures = []
        for name, picture in frame.panels().items():
            form = "PNG" if name == "changed pixels" else "JPEG"
            alt = f"{name}: frame {frame.name}"
            kind = ' class="changed"' if form == "PNG" else ""
            source = data_uri(encode_png(picture) if form == "PNG" else encode_jpeg(picture), form)
            figures.append(f"<figure{kind}>{image(source, alt)}<figcaption>{name}</figcaption></figure>")
        text.append(
            f'<div class="frame"><p class="soft"><code>{html.escape(frame.name)}</code></p>{"".join(figures)}</div>'
        )
    return "".join(text)


def charts(drawn: Sequence[Chart]) -> str:
    """Every chart with its title and caption."""
    figures = []
    for chart in drawn:
        kind = ' class="wide"' if chart.wide else ""
        picture = f'<div class="scroll">{image(data_uri(chart.png, "PNG"), chart.alt)}</div>'
        caption = html.escape(chart.caption)
        figures.append(
            f"<figure{kind}><h3>{html.escape(chart.title)}</h3>{picture}<figcaption>{caption}</figcaption></figure>"
        )
    return f'<h2>The search</h2><div class="pair">{"".join(figures)}</div>'


def cost(content: Content) -> str:
    """Time, epochs, and every failure with its reason."""
    rows = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in cost_rows(content.summary)
    )
    failures = failure_table(content.summary)
    shown = (
        f'<div class="scroll">{table(failures)}</div>' if failures.rows else '<p class="soft">No trial has failed.</p>'
    )
    return f'<h2>What it cost</h2><dl class="cards">{rows}</dl><br>{shown}'


def trials(content: Content) -> str:
    """Every trial with its scores and settings."""
    tables = [trial_table(content.summary), point_table(content.summary)]
    shown = [f'<div class="scroll">{table(t, "dense")}</div>' for t in tables if len(t.columns) > 1]
    return f"<h2>All trials</h2>{'<br>'.join(shown)}"


def foot(content: Content) -> str:
    """When it was written, from what, and how to write it anew."""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(content.written))
    running = sum(t.state is State.RUNNING for t in content.summary.trials)
    still = f" {running} trials were open then." if running else ""
    data = html.escape(content.summary.data[:12])
    command = f"python -m search.report --study {html.escape(content.summary.study)}"
    text = f"Written {when} UTC from the study's ledger (frames {data}).{still} Anew: <code>{command}</code>"
    return f"<footer>{text}</footer>"


def table(content: Table, kind: str = "") -> str:
    """A table; its first `texts` columns are left-aligned, the others are numbers."""
    colours = {c.name: c.colour for c in CLASSES}
    lines = []
    for row in content.rows:
        cells = []
        for at, text in enumerate(row.cells):
            shown = html.escape(text)
            if at == 0 and text in colours:
                shown = f"{dot(colours[text])}{shown}"
            elif content.signed and text[:1] in ("+", "-") and text.strip("+-0."):
                shown = f'<span class="{"up" if text[0] == "+" else "down"}">{shown.replace("-", "&minus;", 1)}</span>'
            cells.append(f"<td{align(content, at)}>{shown}</td>")
        lines.append(f'<tr class="{row.kind}">{"".join(cells)}</tr>')
    heads = "".join(f"<th{align(content, k)}>{breakable(name)}</th>" for k, name in enumerate(content.columns))
    caption = f"<caption>{html.escape(content.title)}</caption>" if content.title else ""
    return f'<table class="{kind}">{caption}<thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def align(content: Table, column: int) -> str:
    """The class of a cell that holds text."""
    if column == content.reason:
        return ' class="reason"'
    return ' class="text"' if column < content.texts else ""


def breakable(name: str) -> str:
    """A column's name; a long one goes over two lines."""
    return html.escape(name).replace(".", ".<br>", 1).replace("traffic ", "traffic<br>")


def legend(entries: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """Names beside their colours."""
    shown = "".join(f"<span>{dot(colour)}{html.escape(name)}</span>" for name, colour in entries)
    return f'<div class="legend">{shown}</div>'


def dot(colour: tuple[int, int, int]) -> str:
    """A small square of a colour."""
    return f'<span class="dot" style="background:rgb{colour}"></span>'


def image(source: str, alt: str) -> str:
    """A picture."""
    return f'<img src="{source}" alt="{html.escape(alt)}">'


def data_uri(data: bytes, form: str) -> str:
    """A file as an address that holds it."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(data).decode()}"


STYLE = """
:root { --ink: #1c2733; --soft: #5d6975; --line: #dfe4e8; --wash: #f5f7f9; --blue: #0062be; --vermilion: #c24a00; }
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, figcaption, footer { color: var(--soft); font-size: .9rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0;
  padding: 0;
}
.cards div { background: var(--wash); border-radius: 8px; padding: 14px 16px; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.cards dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 32px 40px; align-items: start; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
th, td {
  padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom;
  white-space: nowrap;
}
th { font-weight: 600; color: var(--soft); font-size: .82rem; }
td.text, th.text { text-align: left; white-space: normal; }
td.reason { white-space: normal; min-width: 16rem; text-align: left; }
tr.strong td { font-weight: 650; }
tr.best td { background: #eaf2fb; }
td .up { color: var(--blue); } td .down { color: var(--vermilion); }
.dense th, .dense td { padding: 5px 8px; font-size: .82rem; }
.dot {
  display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em;
  vertical-align: -.05em; box-shadow: inset 0 0 0 1px rgba(0,0,0,.25);
}
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 6px; }
.frame { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; margin-bottom: 18px; }
.frame p { grid-column: 1 / -1; margin: 0; }
.frame img { border-radius: 4px; }
.frame .changed img { box-shadow: 0 0 0 1px var(--line); }
.frame figcaption { margin-top: 2px; font-size: .82rem; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .88rem; margin: 0 0 16px; }
footer { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 16px; }
code {
  font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .92em;
  overflow-wrap: anywhere;
}
@media (max-width: 800px) {
  main { padding: 24px 16px 48px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .frame { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .frame figure:first-of-type { grid-column: 1 / -1; }
  table { font-size: .86rem; }
  th, td { padding: 6px 5px; }
  .wide .scroll img { width: 820px; max-width: none; }
}
"""
