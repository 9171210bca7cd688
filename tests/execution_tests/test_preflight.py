"""What a run tells of its data before anything is written."""

from pathlib import Path

import pytest
from rich.console import Console
from small_data import SIZE, save, stripes, write_cityscapes

from search.execution.preflight import print_notes
from search.study.plan import make_plan


def test_classes_that_the_validation_frames_lack_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_cityscapes(tmp_path / "data")
    for label in (root / "gtFine" / "val").rglob("*.png"):
        save(stripes((7, 13, 26, 21, 7, 7, 7)), label)
    data = {"reader": "cityscapes", "root": str(root), "train": 6, "val": 2, "test": 2, "cache": str(tmp_path / "c")}
    settings = {
        f"data.{key}": value for key, value in (data | dict(zip(("height", "width"), SIZE, strict=True))).items()
    }
    plan = make_plan("bas", "configs/quickstart.yaml", settings, {"storage": str(tmp_path / "runs")}, None)
    print_notes(plan, Console())
    expected = "its 2 frames hold no pole, no traffic sign, no traffic light; left out of the means over classes"
    assert capsys.readouterr().out == f"data.val: {expected}\n"
