"""`python -m fgseg.labels`: what label images hold, and a file that the reader takes once it is completed."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from small_data import noise, save, settings, stripes

from fgseg import data
from fgseg.config.errors import ConfigError
from fgseg.labels.__main__ import main


def write_labels(root: Path, label: np.ndarray, count: int = 10) -> Path:
    for i in range(count):
        save(noise(i), root / "images" / f"f{i}.png")
        save(label, root / "labels" / f"f{i}.png")
    return root


def test_ids_are_listed_with_their_share_and_the_file_is_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_labels(tmp_path / "data", stripes((50, 50, 50, 17, 17, 26, 255)))
    assert main([str(root)]) == 0
    shown = capsys.readouterr()
    assert "10 label images" in shown.err and "45.000 %" in shown.err
    assert yaml.safe_load(shown.out) == {"rest": "background", "ids": {17: None, 26: None, 50: None, 255: None}}
    assert "fence, car, vegetation, pole, traffic_sign, traffic_light, or void" in shown.out
    text = shown.out.replace("17:", "17: pole").replace("26:", "26: car").replace("255:", "255: void")
    (root / "labels.yaml").write_text(text.replace("50:", "50: background"))
    labels = data.load_splits(settings("folder", root, tmp_path / "cache"))["val"].labels
    assert np.array_equal(labels[0], stripes((0, 0, 0, 4, 4, 2, 255)))


def test_colours_are_listed_as_the_file_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    palette = np.zeros((256, 3), np.uint8)
    palette[1] = (128, 0, 64)
    root = write_labels(tmp_path / "data", palette[stripes((0, 0, 0, 1, 1, 1, 1))])
    assert main([str(root / "labels"), "--images", "3"]) == 0
    shown = capsys.readouterr()
    assert "3 label images" in shown.err
    assert yaml.safe_load(shown.out) == {"rest": "background", "colours": {"0, 0, 0": None, "128, 0, 64": None}}
    (root / "labels.yaml").write_text(
        shown.out.replace("128, 0, 64:", "128, 0, 64: car").replace("0, 0, 0:", "0, 0, 0: void")
    )
    labels = data.load_splits(settings("folder", root, tmp_path / "cache"))["val"].labels
    assert set(np.unique(labels).tolist()) == {2, 255}


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "written.yaml"
    written.touch()
    (tmp_path / "empty").mkdir()
    root = str(write_labels(tmp_path / "data", stripes((0, 0, 0, 17, 17, 17, 17)), count=1))
    for arguments, message in (
        ([str(tmp_path / "empty")], "has no label images"),
        ([root, "--images", "0"], "--images: got 0"),
        ([root, "--labels", "nope"], "no label set"),
        ([root, "--out", str(written)], "--out: "),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert written.read_text() == ""


def test_file_is_written_to_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_labels(tmp_path / "data", stripes((0, 0, 0, 17, 17, 17, 17)), count=1)
    assert main([str(root), "--out", str(root / "labels.yaml")]) == 0
    shown = capsys.readouterr()
    assert "complete" in shown.err and shown.out == ""
    assert yaml.safe_load((root / "labels.yaml").read_text())["ids"] == {0: None, 17: None}


def test_rest_of_the_file_is_a_word_of_its_label_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = tmp_path / "own.yaml"
    own.write_text("classes: [{name: Elsewhere}, {name: pole, thin: true}]\n")
    root = write_labels(tmp_path / "data", stripes((0, 0, 0, 17, 17, 17, 17)))
    for labels, rest in (("cityscapes19", "void"), (str(own), "elsewhere")):
        assert main([str(root), "--labels", labels]) == 0
        text = capsys.readouterr().out
        (root / "labels.yaml").write_text(text.replace("  0:", "  # 0:").replace("17:", "17: pole"))
        assert yaml.safe_load(text)["rest"] == rest
        changed = settings("folder", root, tmp_path / "cache", labels=labels)
        found = np.unique(data.load_splits(changed)["val"].labels).tolist()
        assert found == sorted([changed.label_set().rest, changed.label_set().keys.index("pole")])


def test_photos_are_not_taken_for_labels_and_an_empty_file_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = write_labels(tmp_path / "data", stripes((0, 0, 0, 17, 17, 17, 17)))
    (root / "labels").rename(root / "annotations")
    assert main([str(root)]) == 2
    assert "has images/ and no labels/; name the folder of the label images" in capsys.readouterr().err
    (root / "labels.yaml").write_text("\n")
    with pytest.raises(ConfigError, match=r"labels.yaml: is empty; `python -m fgseg.labels .*data` prints a file"):
        data.load_splits(settings("folder", root, tmp_path / "cache"))
