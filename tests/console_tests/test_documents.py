"""What the commands print with --json: exactly the fields that the documents declare."""

import json
import os
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_untrained
from kept_study import begin, finished_study, train
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console
from small_data import make, write_folder

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.storage.store import LocalStore
from search import run, status
from search.audit.__main__ import AuditDocument
from search.audit.__main__ import main as audit
from search.compare.__main__ import main as compare
from search.console import decoding
from search.console.decoding import decoding_progress
from search.console.document_content import data_document
from search.console.documents import PlanDocument, SpaceDocument, StatusDocument, StudyDocument
from search.console.listings import print_data
from search.ledger.records import State
from search.ledger.study_metadata import Confirmation, Constraint


def test_spaces_are_listed_with_their_ranges(capsys: pytest.CaptureFixture[str]):
    assert run.main(["--list", "--json"]) == 0
    spaces = {s.space: s for s in TypeAdapter(list[SpaceDocument]).validate_json(capsys.readouterr().out)}
    ssim = spaces["bas"].searched["loss.ssim"]
    assert ssim.low < ssim.start < ssim.high


def sets(**settings: object) -> list[str]:
    """--set for settings of the section `data`."""
    return [word for key, value in settings.items() for word in ("--set", f"data.{key}={value}")]


def test_plan_names_settings_as_set_does_and_masks_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uri = "http://someone:very-secret@127.0.0.1:5000"
    arguments = ["--space=bas", "--dry-run", "--json", f"--storage={tmp_path / 'runs'}", f"--tracking-uri={uri}"]
    assert run.main([*arguments, *sets(train=6, val=3, cache=tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    plan = PlanDocument.model_validate_json(shown)
    assert (plan.new_trials, plan.exists, plan.search["trials"]) == (8, False, 8)
    assert plan.settings["loss.ssim"] == plan.searched["loss.ssim"].start
    assert "very-secret" not in shown
    train = plan.data.splits["train"]
    assert (train.frames, train.class_frames["background"]) == (6, 6)
    assert sum(train.pixel_share.values()) == pytest.approx(1)
    assert plan.data.picture and plan.data.picture.startswith(str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (run.main, ["--space=bas", "--set", "model.name=smal"], "model.name: no such model 'smal'"),
        (run.main, ["--space=bas", "--warm-start=other"], "--warm-start: no study other in the storage"),
        (
            compare,
            ["--spaces", "baseline", "bas", "--ledger-url=sqlite:////nowhere/a.db"],
            "--ledger-url: the folder of",
        ),
    ],
)
def test_dry_run_refuses_what_a_run_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Any, arguments: list[str], says: str
):
    assert main([*arguments, "--dry-run", f"--storage={tmp_path / 'runs'}"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_dry_run_downloads_nothing_from_the_hub(capsys: pytest.CaptureFixture[str]):
    assert run.main(["--space=bas", "--dry-run", *sets(reader="hub", root="someone/streets")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "data: not read, since a dry run downloads nothing"


def test_dry_run_names_the_file_that_defines_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_folder(tmp_path / "mine")
    classes = "classes: [{name: rest}, {name: kerb, thin: true}, {name: lawn}]\nids: {1: kerb, 2: lawn}\nrest: rest\n"
    (root / "labels.yaml").write_text(classes)
    where = sets(reader="folder", root=root, train=4, val=2, test=2, cache=tmp_path / "cache")
    assert run.main(["--space=baseline", "--dry-run", f"--storage={tmp_path / 'runs'}", *where]) == 0
    shown = capsys.readouterr().out
    assert "labels.yaml of data.root" in shown and "thin_street" not in shown
    assert "class_weights.kerb" in shown


@pytest.mark.parametrize(("interval_s", "lines"), [(10.0, 0), (0.0, 3)])
def test_decoding_prints_to_a_log_only_if_it_takes_long(interval_s: float, lines: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "LOG_INTERVAL_S", interval_s)
    log = StringIO()
    console = Console(file=log)
    show = decoding_progress(console, console.status(""))
    for done in (1, 2, 3):
        time.sleep(0.001)
        show("val", done, 3)
    assert log.getvalue().splitlines() == [f"decoding the val frames: {n} of 3" for n in (1, 2, 3)][:lines]


def test_dry_run_draws_the_labels_of_a_folder_on_its_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The classes that occur have a share, and the picture their colours."""
    cfg = make("folder", tmp_path)
    found = data_document(cfg)
    assert found.picture is not None
    with Image.open(found.picture) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    shares = found.splits["train"].pixel_share
    assert shares["car"] > 0
    car = next(c for c in cfg.label_set().classes if c.key == "car")
    height, half = 40, pixels.shape[1] // 2  # of the first frame, and where its labels begin
    assert (np.abs(pixels[:height, half:].astype(int) - car.colour).sum(-1) < 200).any()
    assert (pixels[height:] == car.colour).all(-1).any()  # in the legend
    print_data(found, cfg, Console())
    assert f"{found.splits['train'].frames} train" in (shown := capsys.readouterr().out)
    assert f"{shares['car']:.2%}" in shown


def test_status_has_the_metrics_of_mlflow_s_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger, folder = begin(tmp_path), tmp_path / "s"
    LocalStore(folder).put(UNTRAINED, json.dumps(make_untrained().to_json()).encode())
    with ledger.lock():
        ledger.complete(train(ledger, folder, epochs=3), 1)
        train(ledger, folder, epochs=1)
        assert status.main(["--study", "s", "--storage", str(tmp_path), "--json"]) == 0
    found = StatusDocument.model_validate_json(capsys.readouterr().out)
    assert found.driver and found.driver.pid == os.getpid()
    assert (found.budget, found.epochs, found.best_trial) == (3, 3, 0)
    assert (found.objectives, found.floors, found.confirmation) == (["val/miou"], {}, None)
    assert found.checkpoint and found.checkpoint["val/miou"] == 0.25
    first, second = found.trials
    assert (first.state, first.epochs, first.params) == (State.COMPLETE, 3, {"loss.ssim": 0.4})
    assert first.metrics["val/miou"] == first.metrics["selected/val/miou"] == pytest.approx(0.3)
    assert (second.state, second.metrics["val/miou"]) == (State.RUNNING, pytest.approx(0.09))
    assert "selected/val/miou" not in second.metrics
    assert "val/iou/pole" not in first.metrics  # absent from the frames


def test_status_has_the_objective_and_the_time_used_and_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = begin(tmp_path)
    limited = replace(ledger.metadata, max_hours=100.0, objectives=("val/iou/car",))
    ledger.record_run(limited, began=time.time() - 3600)
    number = train(ledger, tmp_path / "s", epochs=1)
    ledger.record_constraint(Constraint({"car": 0.4}, 0.005, "the untrained checkpoint"))
    ledger.record_confirmation(Confirmation(number, ended=1, mean=0.5, low=0.4, seeds=2))
    assert status.main(["--study", "s", "--storage", str(tmp_path), "--json"]) == 0
    found = StatusDocument.model_validate_json(capsys.readouterr().out)
    assert (found.objectives, found.floors) == (["val/iou/car"], {"car": 0.4})
    assert found.time.hours == pytest.approx(1, abs=0.01)  # the test takes less than 36 s
    assert found.time.hours_left == 100 - found.time.hours
    assert (found.time.gpu_hours, found.time.gpu_hours_left, found.seconds_left) == (0, None, None)
    assert found.confirmation is None  # no trial had ended


def test_studies_are_listed_with_their_best_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = begin(tmp_path)
    ledger.complete(train(ledger, tmp_path / "s", epochs=3), 1)
    arguments = ["--list-studies", "--json", f"--storage={tmp_path}", "--config=configs/finetune.yaml"]
    assert run.main(arguments) == 0
    (study,) = TypeAdapter(list[StudyDocument]).validate_json(capsys.readouterr().out)
    assert (study.study, study.best_trial) == ("s", 0)
    assert study.trials == {"running": 0, "complete": 1, "pruned": 0, "fail": 0}
    assert (study.metrics["best/epoch"], study.objectives) == (3, ["val/miou"])


@pytest.mark.slow
def test_audit_lists_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    finished_study(tmp_path)
    arguments = ["--study", "s", "--storage", str(tmp_path), "--json"]
    assert audit(arguments) == 0
    assert AuditDocument.model_validate_json(capsys.readouterr().out) == AuditDocument(study="s", broken=[])
    assert audit([*arguments, "--replay"]) == 1  # the metadata of this study names no space
    found = AuditDocument.model_validate_json(capsys.readouterr().out)
    assert [line.partition(":")[0] for line in found.broken] == ["trial 0", "trial 1", "trial 2"]
    assert (found.points, found.points_equal) == (3, 0)


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (run.main, ["--space", "bas", "--json"], "--json: only with --dry-run"),
        (status.main, ["--study", "s", "--json", "--follow"], "--json: not with --follow"),
    ],
)
def test_json_that_makes_no_sense_is_refused(main, arguments: list[str], says: str, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
