"""What the documents tell people to type is understood, and the files that they name are there."""

import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from search import run

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "search/README.md",
    "scripts/README.md",
    "configs/README.md",
    "configs/labels/README.md",
    "mlflow/README.md",
    "configs/cluster/ray-up.yaml",
)
MARKDOWN = [name for name in DOCUMENTS if name.endswith(".md")]
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
COMMANDS = sorted(
    {
        re.sub(r"\\?\n#? +", " ", found).strip(" \\`'")
        for text in TEXT.values()
        for found in re.findall(r"python -m ((?:search|fgseg)\.\w+ (?:[^`#\n']|\n#?  +-)+)", text)
    }
)
ELSEWHERE = ("/path/to/", "-per-trial", "--ray-address", "bas_flip")
"""Parts of commands that need other data, another machine or a change of this tree to run."""
FILES = re.compile(r"`((?:search|fgseg|configs|scripts|tests|mlflow|\.github|\.ci)/[\w./-]+)`|\]\(([\w./-]+)[)#]")
DIFF = re.compile(r"```diff.*?```", re.DOTALL)
"""Lines of code, in which a call after an index looks like a link."""
SCRIPTS = re.compile(r"python (scripts/[\w/]+\.py)|python -m (scripts\.[\w.]+)")
LINKS = re.compile(r"\]\(([\w./-]*)#([\w-]+)\)")
"""A link to a heading: file, empty for the same one, and anchor."""


def parser_of(command: str) -> ModuleType:
    """Return the module whose `parse` reads the options of `python -m <command>`."""
    found = importlib.import_module(command)
    return importlib.import_module(f"{command}.__main__") if hasattr(found, "__path__") else found


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_documents_is_understood(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module, *arguments = shlex.split(command.partition(" > ")[0])  # without the shell's redirection
    options = parser_of(module).parse(arguments)
    if options and module == "search.run" and options.space and not any(part in command for part in ELSEWHERE):
        monkeypatch.chdir(tmp_path)
        assert run.plan_from(options).space.name == options.space


@pytest.mark.parametrize("name", MARKDOWN)
def test_file_that_a_document_names_is_there(name: str):
    named = {first or second for first, second in FILES.findall(DIFF.sub("", TEXT[name]))}
    places = (ROOT, (ROOT / name).parent)
    assert [file for file in sorted(named) if not any((place / file).exists() for place in places)] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_script_that_a_document_runs_is_there(name: str):
    paths = {path or f"{module.replace('.', '/')}" for path, module in SCRIPTS.findall(TEXT[name])}
    places = [(ROOT / path, ROOT / f"{path}.py") for path in sorted(paths)]
    assert [place for place in places if not any(path.exists() for path in place)] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_heading_that_a_document_links_to_is_there(name: str):
    document = ROOT / name
    links = LINKS.findall(TEXT[name])
    assert [link for link in links if link[1] not in anchors(document.parent / link[0] if link[0] else document)] == []


def test_name_in_a_walkthrough_is_defined():
    text = re.search(r"^# Three walkthroughs\n(.*?)^# ", TEXT["CONTRIBUTING.md"], re.MULTILINE | re.DOTALL)
    assert text
    names = {name for name in re.findall(r"`([A-Za-z_][\w.]*)`", text[1]) if not name.endswith(".py")}
    assert "run_study" in names
    paths = [*ROOT.glob("search/**/*.py"), *ROOT.glob("fgseg/**/*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    defined = set(re.findall(r"^ *(?:class|def) (\w+)|^(\w+) = ", source, re.MULTILINE))
    known = {first or second for first, second in defined}
    assert [name for name in sorted(names) if not known.issuperset(name.split("."))] == []


def test_readme_has_at_most_200_lines():
    assert len(TEXT["README.md"].splitlines()) <= 200
