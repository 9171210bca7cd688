"""A study's report as one HTML page that needs nothing else: style and pictures are inside."""

import base64
import html
import time
from collections.abc import Iterable, Sequence

from fgseg.labels import CLASSES, FOREGROUND
from fgseg.visual.label_images import BROKEN, MENDED, RIGHT, WRONG, encode_jpeg, encode_png
from search.ledger.records import State
from search.report_content import Chart, Content
from search.report_style import STYLE
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
