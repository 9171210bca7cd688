"""The commands that the end of a run prints."""

import sys

import pytest

from search.console.run_summary import current_command


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
