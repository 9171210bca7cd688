"""One contract for every reader."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import make, noise, run_python, save, settings, stripes, write_cityscapes, write_folder, write_hub

from fgseg import data
from fgseg.config.settings import DataConfig
from fgseg.data import image_files
from fgseg.labels import VOID

READERS = ("streets", "cityscapes", "folder", "hub")

REAL = Path(__file__).parents[3] / "shared" / "data" / "cityscapes256"


@pytest.fixture(params=READERS)
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    return make(request.param, tmp_path)


def test_splits_have_the_counts_and_sizes_of_the_settings(cfg):
    splits = data.load_splits(cfg)
    assert {name: len(frames) for name, frames in splits.items()} == {"train": 6, "val": 2, "test": 2}
    for name, frames in splits.items():
        assert frames.images.shape == (getattr(cfg, name), 40, 80, 3)
        assert frames.labels.shape == (getattr(cfg, name), 40, 80)
        assert frames.images.dtype == frames.labels.dtype == np.uint8
        assert isinstance(frames.images, np.memmap) and not frames.images.flags.writeable


def test_no_frame_is_in_two_splits(cfg):
    splits = data.load_splits(cfg)
    names = [name for frames in splits.values() for name in frames.names]
    contents = {image.tobytes() for frames in splits.values() for image in frames.images}
    assert len(set(names)) == len(contents) == 10


def test_labels_are_the_seven_classes_and_void(cfg):
    labels = data.load_splits(cfg)["val"].labels
    assert set(range(1, 7)) <= set(np.unique(labels).tolist()) <= {*range(7), VOID}


def test_the_order_in_which_a_disk_lists_files_changes_nothing(cfg, tmp_path, monkeypatch):
    first = data.load_splits(cfg)
    walk = image_files.walk
    monkeypatch.setattr(image_files, "walk", lambda *location: reversed(list(walk(*location))))
    second = data.load_splits(cfg.model_copy(update={"cache": str(tmp_path / "other")}))
    assert [f.names for f in second.values()] == [f.names for f in first.values()]
    assert data.fingerprint(second) == data.fingerprint(first)


def test_the_data_seed_draws_other_frames(cfg):
    first = data.load_splits(cfg)
    second = data.load_splits(cfg.model_copy(update={"seed": 1}))
    assert data.fingerprint(first) != data.fingerprint(second)


def test_val_and_test_stay_when_train_grows(cfg):
    few = data.load_splits(cfg.model_copy(update={"train": 3}))
    many = data.load_splits(cfg)
    for name in ("val", "test"):
        assert few[name].fingerprint == many[name].fingerprint
    assert few["train"].names == many["train"].names[:3]


def test_resized_frames_have_the_asked_size_and_no_new_labels(cfg):
    frames = data.load_splits(cfg.model_copy(update={"height": 50, "width": 96}), names=["val"])["val"]
    assert frames.images.shape == (2, 50, 96, 3)
    assert set(np.unique(frames.labels).tolist()) <= {*range(7), VOID}


@pytest.mark.parametrize("reader", ["cityscapes", "folder", "hub"])
def test_each_id_becomes_its_class(reader, tmp_path):
    labels = data.load_splits(make(reader, tmp_path), names=["test"])["test"].labels
    assert np.array_equal(labels[0], stripes((0, 1, 2, 3, 4, 5, 6)))


def test_val_and_test_come_from_the_official_val_folder(tmp_path):
    splits = data.load_splits(make("cityscapes", tmp_path))
    assert {name.split("/")[0] for name in splits["val"].names + splits["test"].names} == {"val"}
    assert {name.split("/")[0] for name in splits["train"].names} == {"train"}


def test_all_splits_come_from_train_where_no_val_folder_has_frames(tmp_path):
    root = write_cityscapes(tmp_path / "data", train=10, val=0)
    splits = data.load_splits(settings("cityscapes", root, tmp_path / "cache"))
    assert len({name for frames in splits.values() for name in frames.names}) == 10


def test_folder_reader_follows_official_subfolders(tmp_path):
    root = write_folder(tmp_path / "data", count=0)
    for part, count in (("train", 6), ("val", 4)):
        for i in range(count):
            save(noise(i), root / "images" / part / f"{i}.jpg")
            save(stripes((50, 1, 2, 3, 4, 5, 6)), root / "labels" / part / f"{i}.png")
    splits = data.load_splits(settings("folder", root, tmp_path / "cache"))
    assert all(name.startswith("val/") for name in splits["val"].names + splits["test"].names)


@pytest.mark.parametrize("heldout", ["validation", "val"])
def test_hub_reader_validates_on_the_official_split(heldout, tmp_path):
    cfg = settings("hub", write_hub(tmp_path / "data", heldout), tmp_path / "cache")
    splits = data.load_splits(cfg)
    assert all(name.startswith(f"{heldout}/") for name in splits["val"].names + splits["test"].names)


def test_ignored_ids_become_void_when_asked(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    for label in (root / "gtFine" / "val").rglob("*.png"):
        save(stripes((0, 13, 26, 21, 17, 20, 19)), label)
    cfg = settings("cityscapes", root, tmp_path / "cache", void="ignore")
    assert data.load_splits(cfg)["val"].labels[0, 0, 0] == VOID
    assert data.load_splits(cfg.model_copy(update={"void": "background"}))["val"].labels[0, 0, 0] == 0


def test_labels_may_have_a_palette_or_sixteen_bits(tmp_path):
    cfg = make("folder", tmp_path)
    for i, path in enumerate(sorted((tmp_path / "data" / "labels").rglob("*.png"))):
        ids = stripes((50, 1, 2, 3, 4, 5, 6))
        save(ids.astype(np.uint16), path)
        if i % 2:
            paletted = Image.fromarray(ids)
            paletted.putpalette(list(range(256)) * 3)
            paletted.save(path)
    labels = data.load_splits(cfg)["train"].labels
    assert (labels == stripes((0, 1, 2, 3, 4, 5, 6))).all()


def test_importing_and_checking_leave_torch_datasets_and_pil_alone(tmp_path):
    code = (
        "import sys; from fgseg import data; from fgseg.config.errors import ConfigError\n"
        "from fgseg.config.settings import DataConfig\n"
        "early = {'PIL', 'torch', 'datasets', 'filelock'} & set(sys.modules)\n"
        f"try: data.check(DataConfig(reader='hub', root={str(tmp_path / 'no')!r}))\nexcept ConfigError: pass\n"
        f"data.load_splits(DataConfig(train=1, val=1, test=1, cache={str(tmp_path)!r}))\n"
        "print(early, {'torch', 'datasets'} & set(sys.modules))"
    )
    assert run_python(code) == "set() set()\n"


@pytest.mark.slow
def test_checking_a_hub_folder_does_not_import_torch(tmp_path):
    cfg = make("hub", tmp_path)
    code = (
        "import sys; from fgseg import data; from fgseg.config.settings import DataConfig\n"
        f"data.check(DataConfig(reader='hub', root={cfg.root!r}, train=6, val=2, test=2))\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code) == "False\n"


def test_photos_are_turned_as_their_exif_data_say(tmp_path):
    root = write_folder(tmp_path / "data")
    turned = settings("folder", root, tmp_path / "cache")
    before = data.load_splits(turned)
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned by 180 degrees
    for photo in (root / "images").rglob("*.png"):
        with Image.open(photo) as image:
            image.transpose(Image.Transpose.ROTATE_180).save(photo, exif=exif)
    after = data.load_splits(turned)
    for one, other in zip(before.values(), after.values(), strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


@pytest.mark.skipif(not REAL.is_dir(), reason="real frames are not here")
def test_real_frames_load_and_hold_every_class(tmp_path):
    cfg = settings("cityscapes", REAL, tmp_path, train=4, val=16, test=16, height=128, width=256)
    started = time.perf_counter()
    data.check(cfg)
    assert time.perf_counter() - started < 1.0  # the promise of check, over 3,460 pairs of files
    splits = data.load_splits(cfg)
    assert splits["train"].images.shape == (4, 128, 256, 3) and splits["train"].images.std() > 20
    assert set(np.unique(splits["val"].labels)) == set(range(7))
