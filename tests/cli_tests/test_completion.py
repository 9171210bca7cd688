"""What the shell offers when somebody presses Tab."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, absent
from kept_study import finished_study


def offered(line: str, folder: Path) -> list[str]:
    """What a command offers for the last word of a line, as argcomplete asks it."""
    words = line.split(" ")
    asked = {"_ARGCOMPLETE": "3", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    code = f"import os; os.dup2(1, 8); import runpy; runpy.run_module('{words[2]}', run_name='__main__')"
    environment = os.environ | asked | {"PYTHONPATH": str(ROOT), "COMP_TYPE": "9"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return [word.strip() for word in done.stdout.split("\n")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python -m search.run --space ba", {"baseline", "bas", "bas_cp", "bas_ctx", "bas_edge"}),
        ("python -m search.run --sampler ", {"auto", "gp", "tpe", "random"}),
        ("python -m search.run --space bas --set loss.ss", {"loss.ssim="}),
        ("python -m search.run --space bas --set search.loss.ss", {"search.loss.ssim.low=", "search.loss.ssim.high="}),
        ("python -m search.run --keep", {"--keep", "--keep-checkpoints"}),
    ],
)
def test_tab_offers_spaces_settings_words_and_options(line: str, words: set[str], tmp_path: Path):
    assert set(offered(line, tmp_path)) == words


@pytest.mark.slow
def test_tab_offers_the_studies_of_the_storage_that_the_line_names(tmp_path: Path):
    finished_study(tmp_path / "mine", "street-one")
    assert offered("python -m search.status --storage mine --study ", tmp_path) == ["street-one"]


def test_bash_completes_python_m_after_the_line_that_the_readme_gives(tmp_path: Path):
    if shutil.which("bash") is None:
        absent("there is no bash")
    script = f"""
        export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}
        eval "$(activate-global-python-argcomplete --dest=-)"
        COMP_WORDS=(python -m search.run --space sl); COMP_CWORD=4; COMP_LINE="${{COMP_WORDS[*]}}"
        COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; COMP_WORDBREAKS=" "
        _python_argcomplete_global python sl --space
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["slc"], done.stderr
