"""Official layouts of public data sets, read by the folder reader with a labels.yaml and no code."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import noise, save, settings, stripes

from fgseg import data
from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.config.settings import DataConfig
from fgseg.data.folder import FolderReader
from fgseg.inference.model_card import label_set_name
from fgseg.labels import VOID

KITTI = """
images: training/image_2
labels: training/semantic
ids: {13: fence, 17: pole, 19: traffic light, 20: traffic sign, 21: vegetation, 26: car, 0: void}
rest: background
"""
CAMVID = """
images: 701_StillsRaw_full
labels: LabeledApproved_full
label_ending: _L.png
colours:
  192 192 128: pole
  [192, 128, 128]: traffic sign
  128, 128, 0: vegetation
  "64, 64, 128": fence
  64 0 128: car
  0 0 0: void
rest: background
"""
VISTAS = """
images: {train: training/images, val: validation/images}
labels: {train: training/labels, val: validation/labels}
classes:
  - {name: background}
  - {name: fence, ids: [3], thin: true}
  - {name: lane marking - general, ids: [24], colour: [255, 255, 255], thin: true}
  - {name: pole, ids: [45, 47], thin: true}
  - {name: car, ids: [55]}
ids: {65: void}
rest: background
"""


def write(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.yaml").write_text(text)
    return root


def write_kitti(root: Path) -> Path:
    """KITTI semantics: 200 frames in training/, ids of Cityscapes; testing/ has no labels."""
    for i in range(10):
        save(noise(i), root / "training" / "image_2" / f"{i:06d}_10.png")
        save(stripes((7, 13, 26, 21, 17, 20, 0)), root / "training" / "semantic" / f"{i:06d}_10.png")
        save(noise(i), root / "testing" / "image_2" / f"{i:06d}_10.png")
    return write(root, KITTI)


def write_camvid(root: Path) -> Path:
    """CamVid: one folder of frames, one of labels in colours whose names end in _L."""
    colours = {
        0: (0, 0, 0),
        1: (64, 64, 128),
        2: (64, 0, 128),
        3: (128, 128, 0),
        4: (192, 192, 128),
        5: (192, 128, 128),
    }
    palette = np.zeros((256, 3), np.uint8)
    palette[6] = (128, 64, 128)  # road
    for value, colour in colours.items():
        palette[value] = colour
    for i in range(10):
        save(noise(i), root / "701_StillsRaw_full" / f"0001TP_{i:06d}.png")
        save(palette[stripes((6, 1, 2, 3, 4, 5, 0))], root / "LabeledApproved_full" / f"0001TP_{i:06d}_L.png")
    return write(root, CAMVID)


def write_vistas(
    root: Path, text: str = VISTAS, labels: str = "labels", ids: tuple[int, ...] = (13, 3, 55, 24, 45, 47, 65)
) -> Path:
    """Mapillary Vistas: training/ and validation/, labels with a palette."""
    for part, count in (("training", 6), ("validation", 4)):
        for i in range(count):
            save(noise(i + 100 * count), root / part / "images" / f"f{i}.jpg")
            image = Image.fromarray(stripes(ids))
            image.putpalette(list(range(256)) * 3)
            path = root / part / labels / f"f{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return write(root, text)


def first_labels(cfg: DataConfig) -> list[int]:
    """The labels of the stripes of the first validation frame, from left to right."""
    row = data.load_splits(cfg)["val"].labels[0, 0].tolist()
    return [label for i, label in enumerate(row) if i == 0 or label != row[i - 1]]


def test_kitti_has_the_ids_of_cityscapes_in_its_own_folders(tmp_path):
    cfg = settings("folder", write_kitti(tmp_path / "kitti"), tmp_path / "cache")
    assert first_labels(cfg) == [0, 1, 2, 3, 4, 5, VOID]
    notes = data.absent_notes(cfg, data.load_splits(cfg))
    assert notes[0] == "data.val: its 2 frames hold no traffic light; left out of the means over classes"


def test_camvid_has_colours_and_no_traffic_lights(tmp_path):
    cfg = settings("folder", write_camvid(tmp_path / "camvid"), tmp_path / "cache")
    assert first_labels(cfg) == [0, 1, 2, 3, 4, 5, VOID]


def test_vistas_defines_classes_of_its_own(tmp_path):
    cfg = settings("folder", write_vistas(tmp_path / "vistas"), tmp_path / "cache")
    assert [c.key for c in cfg.label_set().classes] == ["background", "fence", "lane_marking_general", "pole", "car"]
    assert first_labels(cfg) == [0, 1, 4, 2, 3, VOID]
    run = build([Layer("test", {"data.reader": "folder", "data.root": cfg.root, "class_weights.pole": 2})])
    assert run.class_weights == {"background": 1, "fence": 1, "lane_marking_general": 1, "pole": 2, "car": 1}
    assert label_set_name(run) == "labels.yaml of data.root"
    assert label_set_name(build([])) == "thin_street"


@pytest.mark.parametrize(("version", "count"), [("v1.2", 66), ("v2.0", 124)])
def test_vistas_is_read_with_all_its_ids_from_the_folder_of_a_version(tmp_path: Path, version: str, count: int):
    last = count - 1  # the id without a class
    classes = "\n".join(f"  - {{name: class {i}, ids: [{i}]}}" for i in range(last))
    parts = f"{{train: training/{version}/labels, val: validation/{version}/labels}}"
    images = "{train: training/images, val: validation/images}"
    text = f"images: {images}\nlabels: {parts}\nbackground: false\nclasses:\n{classes}\nids: {{{last}: void}}\n"
    root = write_vistas(tmp_path / "vistas", text, f"{version}/labels", (0, 1, 60, last - 2, last - 1, last, 5))
    cfg = settings("folder", root, tmp_path / "cache")
    assert cfg.label_set().num_classes == last
    assert first_labels(cfg) == [0, 1, 60, last - 2, last - 1, VOID, 5]


def test_frames_of_train_and_val_come_from_their_own_folders(tmp_path):
    splits = FolderReader(settings("folder", write_vistas(tmp_path / "vistas"), tmp_path, test=1)).splits()
    parts = {name: {frame.name.split("/")[0] for frame in frames} for name, frames in splits.items()}
    assert parts == {"train": {"train"}, "val": {"val"}, "test": {"val"}}


def test_colour_that_is_not_in_the_file_is_named(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    write(root, CAMVID.replace("rest: background", ""))
    with pytest.raises(
        ConfigError, match=r"_L\.png: has the colours \[128, 64, 128\], which are not in .*labels\.yaml; add"
    ):
        data.load_splits(settings("folder", root, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ids: {1: pole}\ncolours: {1 2 3: pole}", "has ids and colours, must have one of them"),
        (
            "classes: [{name: rest}, {name: pole, ids: [1]}]\ncolours: {1 2 3: pole}",
            "has ids and colours, must have one of them",
        ),
        ("colours: {1 2: pole}", "colours: got '1 2', must be red, green and blue in [0, 255]"),
        ("colours: {1 2 256: pole}", "colours: got '1 2 256', must be red, green and blue in [0, 255]"),
        ("colours: {1 2 3: pol}", "colours: 1 2 3: pol is not a class; did you mean pole?"),
        ("colours: {1 2 3: void}", "colours: no colour means a class; name at least one of fence"),
        ("ids: {1: pole}\nrest: backgrund", "rest: backgrund is not a class; did you mean background?"),
        ("ids: {1: pole}\nlabel_ending: 3", "label_ending: got 3, must be text such as .png"),
        ("ids: {1: pole}\nimages: {val: a}", "images: got {'val': 'a'}, must name the folder of train"),
        ("ids: {1: pole}\nimages: {training: a}", "images.training: no such part; did you mean train?"),
        ("ids: {1: pole}\nimages: {train: a}\nlabels: {train: b, val: c}", "a has no frames"),
        ("ids: {1: pole}\nending: .png", "ending: no such field; did you mean label_ending?"),
        ("classes: [{name: a}, {name: kerb}]", "ids: got None, must map each id to a class"),
        ("classes: [{name: a}, {nam: kerb}]", "classes: entry 2: nam: no such field; did you mean name?"),
        ("ids: {1: pole, 1: car}", "1 is given twice"),
    ],
)
def test_mistake_in_the_file_is_told(tmp_path, text: str, message: str):
    cfg = settings("folder", write(tmp_path / "data", text), tmp_path / "cache")
    with pytest.raises(ConfigError) as caught:
        data.check(cfg)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_label_set_that_is_given_twice_is_refused(tmp_path):
    cfg = settings("folder", write_vistas(tmp_path / "vistas"), tmp_path, labels="streets")
    with pytest.raises(ConfigError, match=r"data\.labels: got streets, .*labels\.yaml defines its own classes"):
        data.check(cfg)
