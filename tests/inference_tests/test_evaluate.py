"""`python -m fgseg.evaluate`: the per-class table of a trained model on any split."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from finished_model import tiny_run, trained_study
from small_checkpoint import CITYSCAPES, save_checkpoint
from small_data import make, run_python
from thin_street import FOREGROUND, THIN_STREET
from transformers import SegformerForSemanticSegmentation

from fgseg.config.loading import Layer, build
from fgseg.config.settings import nest
from fgseg.evaluate import autocast, main, score
from fgseg.inference.trained_model import find_trained
from fgseg.model.class_names import match_classes
from fgseg.training.untrained import evaluate_untrained
from search.export.model import export
from search.ledger.ledger import Ledger
from search.study.location import StudyLocation

if TYPE_CHECKING:
    from bucket_server import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache: str) -> tuple[StudyLocation, Ledger]:
    return trained_study(tmp_path_factory.mktemp("evaluate") / "runs", cache)


@pytest.fixture
def config(tmp_path: Path, cache: str) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(nest(tiny_run(cache).flat())))
    return str(path)


def test_scores_are_the_training_s_own_to_the_last_bit(
    study: tuple[StudyLocation, Ledger], config: str, tmp_path: Path
):
    folder, last = export(*study)[0], study[1].trial(0).epochs[-1]
    for model in (folder, f"{study[0].folder}/trials/0"):
        assert main([str(model), "--config", config, "--device", "cpu", "--out", str(tmp_path / "scores.json")]) == 0
        found = json.loads((tmp_path / "scores.json").read_text())
        assert (found["confusion"], found["miou"]) == (last.confusion, last.miou)
        assert {k: v["iou"] for k, v in found["classes"].items()} == last.to_json()["iou"]


@pytest.mark.server
def test_model_in_a_bucket_is_judged_like_one_on_the_disk(
    study: tuple[StudyLocation, Ledger], config: str, bucket: "Bucket", tmp_path: Path
):
    address, written = export(*study, out=bucket.address("models/tiny"))
    assert written and export(*study, out=address) == (address, False)
    assert main([address, "--config", config, "--device", "cpu", "--out", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == study[1].trial(0).epochs[-1].miou


def test_table_shows_every_class(study: tuple[StudyLocation, Ledger], config: str, capsys: pytest.CaptureFixture[str]):
    assert main([str(export(*study)[0]), "--config", config, "--split", "test"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # a long folder breaks the line of the title
    assert all(c.name in shown for c in (*FOREGROUND,))
    assert "on test: 4 frames of 64x128" in shown and "mIoU" in shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ""),
        (["data.fit=pad"], "frames of 64x128 by data.fit=pad"),
        (["data.height=32", "data.crop=32x64"], "frames of 32x128 by data.fit=stretch in windows of 32x64"),
    ],
)
def test_geometry_other_than_the_model_s_is_told_once(
    study: tuple[StudyLocation, Ledger], config: str, settings: list[str], expected: str, capsys
):
    model = str(export(*study)[0])
    assert main([model, "--config", config, "--json", *(part for s in settings for part in ("--set", s))]) == 0
    own = f"{model} expects frames of 64x128 by data.fit=stretch; the configuration evaluates it on "
    assert capsys.readouterr().err.splitlines() == ([own + expected] if expected else [])


def test_json_is_what_out_writes_with_the_names_of_mlflow(
    study: tuple[StudyLocation, Ledger], config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "scores.json"
    assert main([str(export(*study)[0]), "--config", config, "--json", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown == f"{out.read_text()}\n"
    found, last = json.loads(shown), study[1].trial(0).epochs[-1]
    assert found.keys() == {"miou", "classes", "confusion", "split", "data", "metrics"}
    assert found["metrics"] == last.validation_metrics()


def test_precision_and_recall_are_columns_and_rows_of_the_confusion(study: tuple[StudyLocation, Ledger], cache: str):
    scores = score(find_trained(str(export(*study)[0])), tiny_run(cache), "val")
    hits, vegetation = scores.confusion[3][3], scores.classes["vegetation"]
    assert hits > 0
    assert vegetation["recall"] == hits / sum(scores.confusion[3])
    assert vegetation["precision"] == hits / sum(row[3] for row in scores.confusion)


def test_another_data_set_and_size_can_be_judged(study: tuple[StudyLocation, Ledger], tmp_path: Path):
    run = tiny_run("unused").model_copy(update={"data": make("folder", tmp_path)})
    scores = score(find_trained(str(export(*study)[0])), run, "test")
    assert sum(map(sum, scores.confusion)) == 2 * 40 * 80


def test_mistakes_are_told_before_torch_is_imported(config: str):
    code = (
        "import sys; from fgseg.evaluate import main\n"
        f"codes = [main(['./nowhere', '--config', {config!r}]), main(['x/y', '--config', 'no.yaml'])]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    assert run_python(code) == "[2, 2] False\n"


def test_out_that_cannot_be_written_is_told_before_the_evaluation(config: str, tmp_path: Path, capsys):
    for out, reason in ((tmp_path, "is a folder; name a file"), (Path("/proc/none/scores.json"), "cannot be created")):
        assert main(["./nowhere", "--config", config, "--out", str(out)]) == 2
        assert reason in capsys.readouterr().err


def test_split_without_frames_is_told(config: str, capsys: pytest.CaptureFixture[str]):
    assert main(["any", "--config", config, "--set", "data.test=0", "--split", "test"]) == 2
    assert "--split: there are no test frames" in capsys.readouterr().err


def test_bf16_judges_in_bf16_and_auto_on_the_cpu_in_float32():
    product = torch.ones(2, 2)
    for precision, kind in (("bf16", torch.bfloat16), ("auto", torch.float32), ("no", torch.float32)):
        with autocast(precision, "cpu"):
            assert (product @ product).dtype is kind


def test_checkpoint_with_other_classes_is_evaluated_by_their_names(config: str, cache: str, tmp_path: Path, capsys):
    names = [name for name in CITYSCAPES if name != "pole"]
    folder = save_checkpoint(tmp_path / "weights", names)
    assert main([folder, "--config", config, "--device", "cpu", "--out", str(tmp_path / "scores.json")]) == 0
    assert "has no class pole: IoU 0" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "scores.json").read_text())
    labels = match_classes({str(k): name for k, name in enumerate(names)}, THIN_STREET)
    run = build([Layer("test", tiny_run(cache).flat() | {"model.name": folder})])
    expected = evaluate_untrained(run, labels, "val")
    assert (found["miou"], sum(row[4] for row in found["confusion"])) == (expected.miou, 0)


def test_hub_id_is_evaluated_like_its_folder(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub is its cache on this machine, in the layout of huggingface_hub; nothing is downloaded."""
    name, commit = "someone/streets-b0", "0" * 40
    repository = tmp_path / "hub" / "models--someone--streets-b0"
    folder = save_checkpoint(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    counts = []
    for model in (name, folder):
        assert main([model, "--config", config, "--device", "cpu", "--out", str(tmp_path / "scores.json")]) == 0
        counts.append(json.loads((tmp_path / "scores.json").read_text())["confusion"])
    assert counts[0] == counts[1]


def test_checkpoint_in_several_files_is_evaluated_and_one_in_a_pickle_is_refused(config: str, tmp_path: Path, capsys):
    folder = Path(save_checkpoint(tmp_path / "weights"))
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    counts = []
    for name in ("weights", "shards"):
        assert main([str(tmp_path / name), "--config", config, "--out", str(tmp_path / "scores.json")]) == 0
        counts.append(json.loads((tmp_path / "scores.json").read_text())["confusion"])
    assert counts[0] == counts[1]
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    capsys.readouterr()
    assert main([str(folder), "--config", config]) == 2
    assert "has no weights; it must hold model.safetensors" in capsys.readouterr().err


def test_checkpoint_without_a_class_of_these_names_is_refused(config: str, tmp_path: Path, capsys):
    folder = save_checkpoint(tmp_path / "weights", ["cat", "dog"])
    assert main([folder, "--config", config]) == 2
    assert "has 2 other classes, must have background, fence, car" in capsys.readouterr().err
