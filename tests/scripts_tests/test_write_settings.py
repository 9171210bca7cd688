"""configs/README.md: every setting, written from the code."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fgseg.config.settings import RunConfig
from search.study.config import SearchConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_settings", ROOT / "scripts" / "write_settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_of_settings_is_current(script: ModuleType):
    written = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert written == script.text(), "settings have changed: run `python -m scripts.write_settings` and commit its file"


def test_the_list_has_every_setting_once(script: ModuleType):
    lines = script.text().splitlines()
    plain = [name for name in RunConfig().flat() if not name.startswith("class_weights.")]
    for name in [*plain, "class_weights.CLASS", *SearchConfig.model_fields]:
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1, name


@pytest.mark.parametrize(
    "line",
    [
        "| `copy_paste.prob` | a number in [0, 1] | `0.0` | Probability that a training frame receives objects",
        "| `data.root` | text or nothing | none | Folder of the data set",
        "| `train.select` | one of: last, best | `last` | ",
        "| `accept_changes` | true or false | false | ",
        "| `search.KEY.low` | a number | must be given | Smallest value, inclusive. |",
    ],
)
def test_a_setting_is_told_with_range_default_and_meaning(script: ModuleType, line: str):
    assert line in script.text()
