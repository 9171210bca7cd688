"""The cache of decoded frames: built once, rebuilt when damaged, indifferent to where the data lie."""

import errno
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from small_data import make, noise, save, settings, write_cityscapes

from fgseg import data
from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.cache import cache_key


@pytest.fixture
def cfg(tmp_path: Path) -> DataConfig:
    return make("cityscapes", tmp_path)


def counted(cfg: DataConfig) -> tuple[str, int]:
    """The fingerprint after loading, and how many frames were decoded for it."""
    decoded = []
    splits = data.load_splits(cfg, progress=lambda split, done, total: decoded.append((split, done, total)))
    return data.fingerprint(splits), len(decoded)


def entries(cfg: DataConfig) -> list[Path]:
    return sorted(path for path in Path(cfg.cache or "").iterdir() if path.is_dir())


def test_progress_counts_every_frame_of_every_split_while_building_only(cfg):
    calls: list[tuple[str, int, int]] = []
    data.load_splits(cfg, progress=lambda *call: calls.append(call))
    expected = [(split, i + 1, total) for split, total in (("val", 2), ("test", 2), ("train", 6)) for i in range(total)]
    assert calls == expected
    data.load_splits(cfg, progress=lambda *call: calls.append(call))
    assert calls == expected


def test_only_the_asked_splits_are_built(cfg):
    assert list(data.load_splits(cfg, names=["train", "val"])) == ["train", "val"]
    assert len(entries(cfg)) == 2


def test_nothing_but_whole_entries_and_locks_is_left(cfg):
    data.load_splits(cfg)
    for entry in entries(cfg):
        assert sorted(path.name for path in entry.iterdir()) == ["images.npy", "labels.npy", "meta.json"]
    assert {path.suffix for path in Path(cfg.cache or "").iterdir()} == {"", ".lock"}


def test_entry_of_a_label_set_with_fewer_classes_is_built_again(cfg: DataConfig, tmp_path: Path):
    labels = tmp_path / "own.yaml"
    own = cfg.model_copy(update={"labels": str(labels)})
    for text, decoded in (("", 10), (", {name: bird}", 10), ("", 0)):
        labels.write_text(f"classes: [{{name: rest}}, {{name: car, ids: [26]}}{text}]")
        assert counted(own)[1] == decoded
        frames = data.load_splits(own)["val"]
        assert frames.pixels.shape == (2, own.label_set().num_classes)
        assert [c.name for c in frames.absent(own.label_set())] == (["bird"] if text else [])


@pytest.mark.parametrize("change", [{"height": 50}, {"width": 90}, {"void": "ignore"}])
def test_other_settings_have_entries_of_their_own(cfg, change):
    data.load_splits(cfg)
    assert counted(cfg.model_copy(update=change))[1] == 10
    assert len(entries(cfg)) == 6


def test_a_changed_file_is_read_anew(cfg, tmp_path):
    before, _ = counted(cfg)
    path = tmp_path / "data/leftImg8bit/train/city0/f0_leftImg8bit.png"
    stamp = path.stat().st_mtime_ns + 10**9
    save(noise(5), path)
    os.utime(path, ns=(stamp, stamp))
    after, decoded = counted(cfg)
    assert decoded == 6 and after != before


def test_a_deleted_cache_is_built_again(cfg):
    before = counted(cfg)
    shutil.rmtree(cfg.cache or "")
    assert counted(cfg) == before


def test_frames_stay_readable_when_the_cache_is_deleted_after_opening(cfg):
    frames = data.load_splits(cfg)["train"]
    shutil.rmtree(cfg.cache or "")
    assert frames.images[0].std() > 0


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_an_entry_without_one_of_its_files_is_built_again(cfg, name):
    before, _ = counted(cfg)
    (entries(cfg)[0] / name).unlink()
    after, decoded = counted(cfg)
    assert after == before and decoded in (2, 6)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("change", [lambda old: old[:-7], lambda old: old + b"more", lambda old: b""])
def test_an_entry_with_a_file_of_another_size_is_built_again(cfg, name, change):
    before, _ = counted(cfg)
    path = entries(cfg)[0] / name
    path.write_bytes(change(path.read_bytes()))
    after, decoded = counted(cfg)
    assert after == before and decoded in (2, 6)


def test_what_a_killed_build_left_is_cleared_away(cfg):
    data.load_splits(cfg)
    whole = entries(cfg)[0]
    whole.rename(whole.with_name(f"{whole.name}.0badc0de.part"))
    (whole.with_name(f"{whole.name}.0badc0de.part") / "meta.json").unlink()
    data.load_splits(cfg)
    assert len(entries(cfg)) == 3 and whole in entries(cfg)


def test_a_failed_build_leaves_no_entry(cfg, tmp_path):
    (tmp_path / "data/leftImg8bit/train/city0/f0_leftImg8bit.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="f0_leftImg8bit"):
        data.load_splits(cfg)
    assert len(entries(cfg)) == 2


def test_moved_data_keep_their_fingerprint(cfg, tmp_path):
    before, _ = counted(cfg)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = cfg.model_copy(update={"root": str(tmp_path / "elsewhere"), "cache": str(tmp_path / "cache2")})
    assert counted(moved)[0] == before


def test_a_label_pixel_and_a_swap_of_frames_change_the_fingerprint(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    cfg = settings("cityscapes", root, tmp_path / "cache")
    found = {counted(cfg)[0]}
    first, second = sorted((root / "leftImg8bit/train/city0").iterdir())[:2]
    os.utime(first, ns=(1, 1))
    shutil.copyfile(first, tmp_path / "kept.png")
    shutil.copyfile(second, first)
    shutil.copyfile(tmp_path / "kept.png", second)
    found.add(counted(cfg)[0])
    label = sorted((root / "gtFine/train/city0").iterdir())[0]
    save(noise(0)[..., 0] % 34, label)
    found.add(counted(cfg)[0])
    assert len(found) == 3


def wait_for_all(barrier: Barrier) -> None:
    barrier.wait(timeout=60)


@pytest.mark.slow
def test_processes_that_ask_at_once_build_once(cfg):
    context = multiprocessing.get_context("spawn")
    start = {"initializer": wait_for_all, "initargs": (context.Barrier(3),)}
    with ProcessPoolExecutor(3, mp_context=context, **start) as pool:
        results = list(pool.map(counted, [cfg] * 3))
    assert len({found for found, _ in results}) == 1
    assert sum(decoded for _, decoded in results) == 10


def test_a_cache_that_cannot_be_a_folder_names_the_setting(cfg, tmp_path):
    (tmp_path / "file").write_text("")
    for location in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"data\.cache: {location} cannot be written \(.*\); free some space"):
            data.load_splits(cfg.model_copy(update={"cache": str(location)}))


def test_a_full_disk_names_the_setting_and_leaves_nothing(cfg, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"data\.cache: .* cannot be written \(No space left on device\)"):
        data.load_splits(cfg)
    assert entries(cfg) == []


def test_hub_id_has_one_key_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = data.open_reader(DataConfig(reader="streets"))
    cfg = DataConfig(reader="hub", root="someone/streets")
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        keys.add(cache_key(reader, cfg, []))
    assert len(keys) == 1
