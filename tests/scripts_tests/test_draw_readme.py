"""The pictures of the README come from one script."""

import re

from conftest import ROOT

from scripts.draw_readme import FOLDER, PICTURES


def test_every_picture_of_the_readme_is_drawn_by_the_script():
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(f"{FOLDER.name}/{name}" for name in PICTURES)
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(PICTURES)
    assert max((FOLDER / name).stat().st_size for name in PICTURES) < 400_000
