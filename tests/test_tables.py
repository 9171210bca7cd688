"""One table on a terminal, in Markdown and in HTML."""

from io import StringIO

import pytest
from rich.console import Console
from small_data import run_python

from fgseg.tables import Row, Table

SCORES = Table(
    "Scores",
    ["class", "traffic light", "difference", "reason"],
    [Row(["car", "0.5", "-0.1000", "<b>|[red]"]), Row(["mIoU", "0.6", "+0.0000", ""], "strong")],
    text_columns=("reason",),
    signed_columns=("difference",),
)


def test_markdown_aligns_numbers_right_and_prints_strong_rows_bold():
    assert SCORES.to_markdown().splitlines() == [
        "| class | traffic light | difference | reason |",
        "| :--- | ---: | ---: | :--- |",
        "| car | 0.5 | -0.1000 | <b>/[red] |",
        "| **mIoU** | **0.6** | **+0.0000** |  |",
    ]


def test_html_escapes_every_text():
    hostile = Table("<t>", ["<a>", "<b>"], [Row(["<c>", "<d>"])], signed_columns=("<b>",))
    page = hostile.to_html("dense", {"<c>": (1, 2, 3)})
    assert all(f"&lt;{name}&gt;" in page and f"<{name}>" not in page for name in "tabcd")


def test_html_colours_differences_but_not_zero_and_marks_classes():
    page = SCORES.to_html(swatches={"car": (1, 2, 3)})
    assert '<span class="down">−0.1000</span>' in page and "<td>+0.0000</td>" in page
    assert page.count("rgb(1, 2, 3)") == 1 and '<tr class="strong">' in page
    assert "traffic<br>light" in page


@pytest.mark.parametrize("boxed", [True, False])
def test_terminal_prints_cells_as_they_are(boxed: bool):
    shown = StringIO()
    Console(file=shown, width=100).print(SCORES.to_rich(boxed))
    assert all(cell in shown.getvalue() for row in SCORES.rows for cell in row.cells)
    assert "Scores" in shown.getvalue() and ("┃" in shown.getvalue()) is boxed


def test_importing_tables_imports_neither_rich_nor_markupsafe():
    code = "import sys, fgseg.tables; print('rich' in sys.modules, 'markupsafe' in sys.modules)"
    assert run_python(code) == "False False\n"
