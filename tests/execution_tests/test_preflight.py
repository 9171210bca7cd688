"""What a run checks and tells of its data before anything is written."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_data import SIZE, save, stripes, write_cityscapes

from fgseg.config.errors import ConfigError
from search.execution.preflight import preflight, print_notes
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.ledger.trial_source import FixedTrials
from search.run import main
from search.study.plan import Plan, Repeat, make_plan


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of frames whose validation part has car, fence and vegetation only."""
    root = write_cityscapes(tmp_path / "data")
    for label in (root / "gtFine" / "val").rglob("*.png"):
        save(stripes((7, 13, 26, 21, 7, 7, 7)), label)
    data = {"reader": "cityscapes", "root": str(root), "train": 6, "val": 2, "test": 2, "cache": str(tmp_path / "c")}
    return {f"data.{key}": value for key, value in (data | dict(zip(("height", "width"), SIZE, strict=True))).items()}


def plan_of(tmp_path: Path, settings: dict[str, Any], **search: Any) -> Plan:
    flags = {"storage": str(tmp_path / "runs"), **search}
    return make_plan("bas", "configs/quickstart.yaml", settings, flags, "s")


def test_classes_that_the_validation_frames_lack_are_printed(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    print_notes(plan_of(tmp_path, settings), Console())
    expected = "its 2 frames hold no pole, no traffic sign, no traffic light; left out of the means over classes"
    assert capsys.readouterr().out == f"data.val: {expected}\n"


@pytest.mark.parametrize("kind", ["iou", "boundary"])
def test_objective_whose_class_the_validation_frames_lack_is_refused(
    tmp_path: Path, settings: dict[str, Any], kind: str
):
    preflight(plan_of(tmp_path, settings, objective=f"val/{kind}/car,val/thin_miou"), Console())
    message = f"--objective val/{kind}/pole: the 2 validation frames hold no pole; raise data.val"
    with pytest.raises(ConfigError, match=message):
        preflight(plan_of(tmp_path, settings, objective=f"val/thin_miou,val/{kind}/pole"), Console())


def test_search_without_a_searched_setting_is_refused_unless_it_has_one_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    labels = tmp_path / "wide.yaml"
    labels.write_text("classes:\n- {name: background}\n- {name: car, ids: [26]}\n")
    arguments = ["--dry-run", "--space", "baseline", "--storage", str(tmp_path), "--set", f"data.labels={labels}"]
    assert main([*arguments, "--trials", "2"]) == 2
    assert "no setting is searched, so that all 2 trials would train one point" in capsys.readouterr().err
    assert main([*arguments, "--trials", "1"]) == 0


def test_dry_run_refuses_a_constraint_without_reference_and_a_confirmation_without_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--dry-run", "--space", "bas", "--study", "s", "--storage", str(tmp_path), "--set", "model.name=small"]
    assert main([*arguments, "--keep", "car"]) == 2
    assert "--keep car: nothing to compare with" in capsys.readouterr().err
    ledger = open_ledger(
        make_plan("bas", "configs/quickstart.yaml", {"model.name": "small"}, {"storage": str(tmp_path)}, "s")
    )
    ledger.start(FixedTrials([Repeat({}, seed) for seed in range(4)]), epochs=1, select="last")
    while ledger.next_attempt() is not None:
        pass
    assert main([*arguments, "--trials", "13", "--confirm", "3"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--trials", "12", "--confirm", "3"]) == 2
    assert "study s has 4 trials, and --trials 12 counts the repeats too; give --trials 13" in capsys.readouterr().err


def open_ledger(plan: Plan) -> Ledger:
    """Create the study of a plan, without trials."""
    Path(plan.location.folder).mkdir(parents=True)
    ledger = Ledger.create(plan.location.ledger_url, plan.study)
    ledger.record_run(StudyMetadata(plan.study, settings=plan.settings.flat(), identity=plan.identity, budget=4))
    return ledger
