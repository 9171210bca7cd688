"""What the readers say about data that break their contract: where, what was got, what holds, what to do."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from small_data import make, noise, run_python, save, settings, stripes, write_cityscapes, write_folder, write_hub

from fgseg import data
from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig


def error_of(cfg: DataConfig, step=data.load_splits) -> str:
    with pytest.raises(ConfigError) as caught:
        step(cfg)
    return str(caught.value)


def test_a_split_larger_than_the_data_names_settings_and_folder(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    told = error_of(settings("cityscapes", root, tmp_path, val=5), data.check)
    location = root / "leftImg8bit" / "val"
    assert told == f"data.val + data.test: asks for 7 frames, {location} has 6; lower data.val or data.test"


@pytest.mark.parametrize("reader", ["cityscapes", "folder", "hub"])
def test_a_missing_root_is_named(reader, tmp_path):
    told = error_of(settings(reader, tmp_path / "nowhere", tmp_path), data.check)
    assert told == f"data.root: {tmp_path / 'nowhere'} does not exist; name the folder of the data set"


@pytest.mark.parametrize("reader", ["cityscapes", "folder", "hub"])
def test_a_reader_without_root_asks_for_one(reader, tmp_path):
    assert "--set data.root=DIR" in error_of(settings(reader, None, tmp_path), data.check)


def test_an_empty_root_says_what_is_looked_for(tmp_path):
    (tmp_path / "data").mkdir()
    assert "holds leftImg8bit and gtFine" in error_of(settings("cityscapes", tmp_path / "data", tmp_path), data.check)
    assert "written by save_to_disk" in error_of(settings("hub", tmp_path / "data", tmp_path), data.check)
    assert "labels.yaml: is missing" in error_of(settings("folder", tmp_path / "data", tmp_path), data.check)
    write_folder(tmp_path / "data", count=0)
    assert "holds images and labels" in error_of(settings("folder", tmp_path / "data", tmp_path), data.check)


@pytest.mark.parametrize(("reader", "ending"), [("cityscapes", "_leftImg8bit.png"), ("folder", ".png")])
def test_a_frame_without_label_is_named(reader, ending, tmp_path):
    cfg = make(reader, tmp_path)
    images = {"cityscapes": "leftImg8bit/train/city0", "folder": "images/walk0"}[reader]
    extra = save(noise(9), tmp_path / "data" / images / f"extra{ending}")
    told = error_of(cfg, data.check)
    assert told.startswith(f"{extra}: has no label") and "add the label" in told


def test_two_files_for_one_frame_are_named(tmp_path):
    root = write_folder(tmp_path / "data")
    save(noise(0), root / "images" / "walk0" / "f0.jpg")
    told = error_of(settings("folder", root, tmp_path), data.check)
    assert "f0.jpg" in told and "f0.png" in told and "keep one" in told


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_truncated_frame_is_named(ending, tmp_path):
    cfg = make("cityscapes", tmp_path)
    path = next((tmp_path / "data" / "leftImg8bit" / "train").rglob(f"*.{ending}"))
    path.write_bytes(path.read_bytes()[:-1500])
    assert error_of(cfg).startswith(f"{path}: cannot be decoded (")


def test_a_truncated_label_is_named(tmp_path):
    cfg = make("folder", tmp_path)
    path = tmp_path / "data" / "labels" / "walk0" / "f0.png"
    save(noise(0)[..., 0], path).write_bytes(path.read_bytes()[:-1000])
    assert error_of(cfg).startswith(f"{path}: cannot be decoded (")


def test_a_file_that_is_no_image_is_named(tmp_path):
    cfg = make("folder", tmp_path)
    path = tmp_path / "data" / "images" / "walk0" / "f0.png"
    path.write_text("not pixels")
    assert error_of(cfg) == f"{path}: cannot be decoded (not an image); replace or remove it"


def test_a_label_of_another_size_names_both_sizes(tmp_path):
    cfg = make("cityscapes", tmp_path)
    path = save(stripes()[:20], tmp_path / "data/gtFine/train/city0/f0_gtFine_labelIds.png")
    told = error_of(cfg)
    assert told.startswith(f"{path}: is 80x20, its frame ") and "is 80x40" in told


def test_ids_outside_the_table_name_file_and_ids(tmp_path):
    cfg = make("cityscapes", tmp_path)
    path = save(stripes((77, 255, 26, 21, 17, 20, 19)), tmp_path / "data/gtFine/train/city0/f0_gtFine_labelIds.png")
    assert error_of(cfg).startswith(f"{path}: holds ids 77, 255, which are not in -1..33; ")


def test_an_id_missing_in_labels_yaml_is_named_with_the_table(tmp_path):
    cfg = make("folder", tmp_path)
    path = save(stripes((8, 1, 2, 3, 4, 5, 6)), tmp_path / "data/labels/walk0/f0.png")
    told = error_of(cfg)
    assert told.startswith(f"{path}: holds id 8, which is not in 1, 2, 3, 4, 5, 6, 50, 255; add it to ")


def test_a_label_in_colours_is_refused_outside_the_hub(tmp_path):
    cfg = make("cityscapes", tmp_path)
    path = save(noise(0), tmp_path / "data/gtFine/train/city0/f0_gtFine_labelIds.png")
    assert error_of(cfg).startswith(f"{path}: has 3 channels (RGB), a label must have one")


def test_a_frame_of_sixteen_bits_is_refused(tmp_path):
    cfg = make("folder", tmp_path)
    path = save(noise(0)[..., 0].astype(np.uint16), tmp_path / "data/images/walk0/f0.png")
    assert error_of(cfg).startswith(f"{path}: has pixels of mode I;16, must have 8 bits per channel")


def relabel_val(root: Path, *ids: int) -> DataConfig:
    """Cityscapes whose validation frames hold these ids only."""
    write_cityscapes(root / "data")
    for label in (root / "data" / "gtFine" / "val").rglob("*.png"):
        save(stripes(ids), label)
    return settings("cityscapes", root / "data", root / "cache")


def test_a_split_without_any_class_is_refused_every_time(tmp_path):
    cfg = relabel_val(tmp_path, *[7] * 7)
    expected = "data.val: its 2 frames hold no fence, no car, no vegetation, no pole, no traffic sign, no traffic light"
    assert error_of(cfg).startswith(expected)
    assert error_of(cfg).startswith(expected)
    with pytest.raises(ConfigError, match=r"^data\.test: its 2 frames hold no fence, no car"):
        data.load_splits(cfg, names=["test"])
    assert len(data.load_splits(cfg, names=["train"])) == 1


def test_classes_that_a_split_lacks_are_named(tmp_path):
    cfg = relabel_val(tmp_path, 7, 13, 26, 21, 7, 7, 19)
    splits = data.load_splits(cfg, names=["train", "val"])
    assert data.absent_notes(cfg, splits) == [
        "data.val: its 2 frames hold no pole, no traffic sign; left out of the means over classes"
    ]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("ids: {0: pol}", "ids: 0: pol is not a class; did you mean pole?"),
        ("ids: {pole: 7}", "ids: got the id 'pole', must be a whole number"),
        ("ids: {yes: pole}", "ids: got the id True, must be a whole number"),
        ("ids: [pole]", "must map each id to a class"),
        ("classes: {7: pole}", "classes: got {7: 'pole'}, must be a list of 2 to 255 classes"),
        ("ids: {0: background, 7: void}", "no id means a class; name at least one of fence, car, vegetation, pole"),
    ],
)
def test_a_wrong_id_table_says_where_and_what(table, told, tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "labels.yaml").write_text(table)
    message = error_of(settings("folder", root, tmp_path), data.check)
    assert message.startswith(str(root / "labels.yaml")) and told in message


def test_hub_data_with_other_columns_list_what_was_found(tmp_path):
    root = write_hub(tmp_path / "data", columns=("image", "label"))
    told = error_of(settings("hub", root, tmp_path / "cache"), data.check)
    assert "has the columns image (Image), label (Image); must have image and semantic_segmentation" in told


def test_a_truncated_hub_image_names_its_row(tmp_path):
    png = save(noise(0), tmp_path / "frame.png").read_bytes()
    label = save(stripes(), tmp_path / "label.png").read_bytes()
    cells = {"image": [{"bytes": png[:-1500]}] * 10, "semantic_segmentation": [{"bytes": label}] * 10}
    features = datasets.Features(dict.fromkeys(cells, datasets.Image()))
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(str(tmp_path / "data"))
    told = error_of(settings("hub", tmp_path / "data", tmp_path / "cache"))
    assert told.startswith(f"{tmp_path / 'data'}, split train, row ") and "column image: cannot be decoded (" in told


@pytest.mark.slow
def test_an_unreachable_hub_says_what_to_check(tmp_path):
    code = (
        "from fgseg import data; from fgseg.config.errors import ConfigError\n"
        "from fgseg.config.settings import DataConfig\n"
        "cfg = DataConfig(reader='hub', root='nobody/streets-of-nowhere'); data.check(cfg)\n"
        "try: data.load_splits(cfg)\nexcept ConfigError as error: print(error)"
    )
    told = run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert told.startswith("data.root: nobody/streets-of-nowhere is not a folder and cannot be loaded from the hub")
    assert "HF_HUB_OFFLINE" in told and told.count("\n") == 1
