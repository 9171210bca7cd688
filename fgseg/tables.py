"""A table of texts that a terminal, a Markdown file and an HTML page show alike."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Row:
    """One row of a `Table`."""

    cells: Sequence[str]
    """One text per column."""
    style: Literal["", "strong", "best"] = ""
    """`strong` is bold everywhere; `best` is highlighted by the style sheet of an HTML page."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of texts, and how they are aligned."""

    title: str
    """Shown by `to_rich` and `to_html`; `to_markdown` leaves the heading and its level to the caller."""
    columns: Sequence[str]
    rows: Sequence[Row]
    text_columns: Collection[str] = ()
    """Columns beside the first that hold text and are left-aligned; all others hold numbers."""
    signed_columns: Collection[str] = ()
    """The columns of differences, which HTML colours by their sign."""

    def to_rich(self, boxed: bool = False) -> "RichTable":
        """Return the table for a terminal, with lines around the cells if `boxed`.

        Cells are printed as they are: rich's markup in them, such as `[bold]`, has no effect.
        """
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        lines = box.HEAVY_HEAD if boxed else None
        title = Text(self.title, "table.title") if self.title else None
        shown = RichTable(title=title, title_justify="left", box=lines, pad_edge=boxed)
        for k, name in enumerate(self.columns):
            shown.add_column(Text(name), justify="left" if self._is_text(k) else "right", no_wrap=k == 0)
        for row in self.rows:
            shown.add_row(*map(Text, row.cells), style="bold" if row.style == "strong" else None)
        return shown

    def to_markdown(self) -> str:
        """Return the lines of a Markdown table, without a heading and without a newline at the end."""
        rules = [":---" if self._is_text(k) else "---:" for k in range(len(self.columns))]
        bold = [[f"**{c}**" if c and row.style == "strong" else c for c in row.cells] for row in self.rows]
        return "\n".join(
            f"| {' | '.join(c.replace('|', '/') for c in cells)} |" for cells in (self.columns, rules, *bold)
        )

    def to_html(self, css_class: str = "", swatches: Mapping[str, tuple[int, int, int]] | None = None) -> "Markup":
        """Return the `<table>` element; every text is escaped.

        Args:
            css_class: class of the element.
            swatches: RGB colours, 0-255, by the text of a first cell; shown as a small square (class `dot`) before it.

        Cells of text have the class `text`, rows their style, and signed differences the class `up` or `down`.
        """
        from markupsafe import Markup

        heads = [Markup("<th{}>{}</th>").format(self._css(k), self._heading(k)) for k in range(len(self.columns))]
        rows = [
            Markup('<tr class="{}">{}</tr>').format(
                row.style, Markup("").join(self._cell(k, text, swatches or {}) for k, text in enumerate(row.cells))
            )
            for row in self.rows
        ]
        caption = Markup("<caption>{}</caption>").format(self.title) if self.title else ""
        return Markup('<table class="{}">{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
            css_class, caption, Markup("").join(heads), Markup("\n").join(rows)
        )

    def _is_text(self, column: int) -> bool:
        """Return whether a column holds text."""
        return column == 0 or self.columns[column] in self.text_columns

    def _css(self, column: int) -> "Markup":
        """Return the class attribute of a cell of text."""
        from markupsafe import Markup

        return Markup(' class="text"' if self._is_text(column) else "")

    def _heading(self, column: int) -> "Markup":
        """Return the name of a column; that of a number is broken after its first dot or space."""
        from markupsafe import Markup, escape

        name = escape(self.columns[column])
        if self._is_text(column):
            return name
        return name.replace(".", Markup(".<br>"), 1).replace(" ", Markup("<br>"), 1)

    def _cell(self, column: int, text: str, swatches: Mapping[str, tuple[int, int, int]]) -> "Markup":
        """Return one `<td>` element."""
        from markupsafe import Markup, escape

        shown = escape(text)
        if column == 0 and text in swatches:
            shown = Markup('<span class="dot" style="background:rgb{}"></span>{}').format(swatches[text], shown)
        elif self.columns[column] in self.signed_columns and text[:1] in ("+", "-") and text.strip("+-0."):
            kind = "up" if text[0] == "+" else "down"
            shown = Markup('<span class="{}">{}</span>').format(kind, text.replace("-", "−", 1))
        return Markup("<td{}>{}</td>").format(self._css(column), shown)
