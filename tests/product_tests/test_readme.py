"""What the documents tell people to type is understood, and the files that they name are there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from search import run

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "mlflow/README.md", "configs/cluster/ray-up.yaml")
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
COMMANDS = sorted(
    {
        re.sub(r"\\?\n#? +", " ", found).strip(" \\`'")
        for text in TEXT.values()
        for found in re.findall(r"python -m ((?:search|fgseg)\.\w+ (?:[^`#\n']|\n#?  +-)+)", text)
    }
)
ELSEWHERE = ("/path/to/", "-per-trial", "--ray-address", "bas_flip")
"""What stands in commands that need other data, another machine or a change of this tree to be carried out."""
FILES = re.compile(r"`((?:search|fgseg|configs|scripts|tests|mlflow|\.github|\.ci)/[\w./-]+)`|\]\(([\w./-]+)\)")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_documents_is_understood(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module, *arguments = shlex.split(command)
    options = importlib.import_module(module).parse(arguments)
    if options and module == "search.run" and options.space and not any(part in command for part in ELSEWHERE):
        monkeypatch.chdir(tmp_path)
        assert run.plan_from(options).space.name == options.space


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_file_that_a_document_names_is_there(name: str):
    named = {first or second for first, second in FILES.findall(TEXT[name])}
    places = (ROOT, (ROOT / name).parent)
    assert [file for file in sorted(named) if not any((location / file).exists() for location in places)] == []
