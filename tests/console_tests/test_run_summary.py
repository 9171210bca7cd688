"""The commands that the end of a run prints."""

import sys
from io import StringIO

import pytest
from builders import make_trial, make_untrained
from rich.console import Console

from search.console.run_summary import closing_table, current_command
from search.report.summary import Summary


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/lib/search/run.py", ["python", "-m", "search.run"]),
        ("/lib/search/compare/__main__.py", ["python", "-m", "search.compare"]),
        ("/home/me/sweep.py", ["python", "/home/me/sweep.py"]),
    ],
)
def test_command_to_continue_names_the_module_that_was_called(program: str, words: list[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "--storage", "runs"])
    assert current_command() == [*words, "--storage", "runs"]


def test_closing_table_with_the_untrained_checkpoint_fits_into_80_characters():
    best = make_trial(1)
    summary = Summary(
        study="s", space="bas", title="BAS", experiment="e", settings={}, ranges={}, data="f00d", resources={},
        trials=[make_trial(0), best], ranked=[best], start=make_trial(0), best=best, untrained=make_untrained(),
    )  # fmt: skip
    console = Console(width=80, file=StringIO())
    console.print(closing_table(summary, best).to_rich(boxed=True))
    lines = console.file.getvalue().splitlines()
    assert {len(line) for line in lines[1:]} == {78} and "…" not in "".join(lines)
    assert "checkpoint," in lines[2] and "untrained" in lines[3]
    assert [cell.strip() for cell in lines[-2].split("│")[1:-1]] == [
        "mIoU", "0.2500", "0.3000", "0.3100", "+0.0600", "+0.0100",
    ]  # fmt: skip
