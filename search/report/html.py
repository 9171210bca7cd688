"""Render a study's report as one HTML file that loads nothing: style and pictures are embedded."""

import base64
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.labels import SegClass, display_name
from fgseg.visual.label_images import BROKEN, MENDED, RIGHT, WRONG, encode_jpeg, encode_png
from search.ledger.records import count_ended
from search.report.content import Content
from search.report.frames import CHANGED, ShownFrame
from search.report.tables import best_tables, cost_figures, failure_table, params_table, trial_table


class Card(NamedTuple):
    """One figure at the head of the page, with its name above and a detail below."""

    name: str
    value: str
    detail: str


@cache
def page_template() -> Template:
    """Compile `templates/report.html.j2`."""
    environment = Environment(
        loader=PackageLoader("search.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png_uri"] = png_uri
    return environment.get_template("report.html.j2")


def render_page(content: Content) -> str:
    """Fill the template of the page with the report's content."""
    summary = content.summary
    classes = coloured_classes(summary.settings)
    return page_template().render(
        summary=summary,
        notes=content.notes,
        cards=head_cards(content),
        best_tables=best_tables(summary, content.baseline),
        class_colours={display_name(c.key): c.colour for c in classes},
        foreground_colours={display_name(c.key): c.colour for c in classes if c.key in summary.foreground},
        changed=CHANGED,
        change_colours={"mended": MENDED, "broken": BROKEN, "right in both": RIGHT, "wrong in both": WRONG},
        frames_note=content.frames.note,
        frames=[{"name": frame.name, "pictures": frame_pictures(frame)} for frame in content.frames.shown],
        charts=content.charts,
        costs=cost_figures(summary),
        failures=failure_table(summary),
        trial_tables=[trial_table(summary), params_table(summary)],
        written=time.strftime("%Y-%m-%d %H:%M", time.gmtime(content.written)),
        running=sum(t.is_open for t in summary.trials),
        ended=count_ended(summary.trials),
    )


def coloured_classes(settings: Mapping[str, Any]) -> tuple[SegClass, ...]:
    """Return the classes of a study's settings; empty if the file of its label set is gone."""
    try:
        return build([Layer("study", settings)]).label_set().classes
    except ConfigError:
        return ()


def head_cards(content: Content) -> list[Card]:
    """Return the figures that people look for first."""
    summary, other, cost = content.summary, content.baseline.summary, content.summary.cost()
    cards = []
    if summary.best is not None:
        best, untrained = summary.best.value or 0, summary.untrained_value
        cards.append(Card(f"best {summary.objective}", f"{best:.4f}", f"trial {summary.best.number:03d}, validation"))
        if untrained is not None:
            gain = best - untrained
            cards.append(Card("over the untrained checkpoint", f"{gain:+.4f}", f"it has {untrained:.4f}"))
        if summary.start is not None and summary.start.value is not None:
            gain = best - summary.start.value
            cards.append(Card("over the start point", f"{gain:+.4f}", f"trial 000: {summary.start.value:.4f}"))
        if other and other.best and other.best.chosen is not None:
            rival = summary.value(other.best.chosen)
            cards.append(Card("over the baseline family", f"{best - rival:+.4f}", f"its best: {rival:.4f}"))
    cards.append(Card("trials", str(len(summary.trials)), summary.endings()))
    cards.append(Card("trained", f"{cost.amount:.2f}", f"{cost.unit}, {cost.epochs} epochs"))
    return cards


def frame_pictures(frame: ShownFrame) -> list[dict[str, Any]]:
    """Return name and data URI of each panel of a frame; flat colours as PNG, the others as JPEG."""
    return [
        {
            "name": name,
            "source": png_uri(encode_png(panel)) if name == CHANGED else data_uri(encode_jpeg(panel), "jpeg"),
        }
        for name, panel in frame.panels().items()
    ]


def png_uri(data: bytes) -> str:
    """Return a PNG file as a data URI."""
    return data_uri(data, "png")


def data_uri(data: bytes, form: str) -> str:
    """Return an image file of a form such as "png" as a URI that contains it."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"
