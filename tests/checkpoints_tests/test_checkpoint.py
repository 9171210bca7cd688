"""Checkpoints: nothing exists that a manifest does not name, and an older attempt cannot write."""

import errno
import logging
import os
from pathlib import Path

import pytest
from saved_checkpoints import epoch, history, save

from fgseg.checkpoints.checkpoint import Checkpoints, newest_checkpoint
from fgseg.results import SupersededError
from fgseg.storage.store import LocalStore


def newest_epoch(folder: Path) -> int | None:
    checkpoint = newest_checkpoint(LocalStore(folder))
    return checkpoint.manifest.epoch if checkpoint else None


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with checkpoints of epochs 1 to 3."""
    checkpoints = Checkpoints(LocalStore(tmp_path), attempt=1)
    for k in (1, 2, 3):
        save(checkpoints, k)
    return tmp_path


def test_newest_checkpoint_holds_weights_state_and_every_epoch(saved: Path):
    checkpoint = newest_checkpoint(LocalStore(saved))
    assert checkpoint is not None
    assert checkpoint.model["weight"].tolist() == [3, 3, 3]
    assert checkpoint.state == {"optimizer": {"step": 3}}
    assert [e.to_json() for e in checkpoint.manifest.history] == [e.to_json() for e in history(3)]


def test_only_the_newest_two_are_kept(saved: Path):
    manifests = sorted(p.name for p in saved.glob("checkpoint-*"))
    assert manifests == ["checkpoint-000001-000002.json", "checkpoint-000001-000003.json"]
    assert len(list(saved.glob("*.safetensors"))) == 2


def test_best_epoch_is_kept_where_it_stands_for_the_trial(tmp_path: Path):
    checkpoints = Checkpoints(LocalStore(tmp_path), attempt=1)
    results = [epoch(1, 0.9), epoch(2, 0.1), epoch(3, 0.2), epoch(4, 0.3)]
    for k in (1, 2, 3, 4):
        save(checkpoints, k, "best", results)
    assert sorted(int(p.stem[-6:]) for p in tmp_path.glob("checkpoint-*")) == [1, 3, 4]


def test_blob_without_manifest_does_not_exist(saved: Path):
    (saved / "checkpoint-000001-000003.json").unlink()
    assert newest_epoch(saved) == 2


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("blob", ["model-000001-000003.safetensors", "state-000001-000003.pt"])
def test_damaged_newest_checkpoint_gives_way_to_the_one_before_and_says_so(
    saved: Path, caplog: pytest.LogCaptureFixture, damage: str, blob: str
):
    data = (saved / blob).read_bytes()
    if damage == "missing":
        (saved / blob).unlink()
    else:
        (saved / blob).write_bytes(data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert newest_epoch(saved) == 2
    assert blob in caplog.text
    assert "using the previous one" in caplog.text


def test_damaged_manifest_is_named_and_not_used(saved: Path, caplog: pytest.LogCaptureFixture):
    (saved / "checkpoint-000001-000003.json").write_text("{")
    assert newest_epoch(saved) == 2
    assert "checkpoint-000001-000003.json is damaged" in caplog.text


def test_superseded_attempt_cannot_write(saved: Path):
    old = Checkpoints(LocalStore(saved), attempt=2)
    Checkpoints(LocalStore(saved), attempt=3)
    before = sorted(p.name for p in saved.iterdir())
    with pytest.raises(SupersededError, match="attempt 2 of this trial was superseded by attempt 3"):
        save(old, 3)
    assert sorted(p.name for p in saved.iterdir()) == before


def test_attempt_that_is_superseded_while_it_writes_completes_no_checkpoint(tmp_path: Path):
    class SupersededStore(LocalStore):
        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            if name.startswith("state-"):
                super().put("attempt-000002", b"")

    old = Checkpoints(SupersededStore(tmp_path), attempt=1)
    with pytest.raises(SupersededError, match="attempt 1 of this trial was superseded by attempt 2"):
        save(old, 1)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_blobs_are_written_before_the_manifest_that_names_them_and_deleted_after_it(saved: Path):
    calls: list[str] = []

    class RecordingStore(LocalStore):
        def put(self, name: str, data: bytes) -> None:
            calls.append(f"put {name}")
            super().put(name, data)

        def delete(self, name: str) -> None:
            calls.append(f"delete {name}")
            super().delete(name)

    save(Checkpoints(RecordingStore(saved), attempt=1), 4)
    blobs = ["model-000001-{:06d}.safetensors", "state-000001-{:06d}.pt"]
    written = [*(f"put {blob}".format(4) for blob in blobs), "put checkpoint-000001-000004.json"]
    deleted = ["delete checkpoint-000001-000002.json", *(f"delete {blob}".format(2) for blob in blobs)]
    assert calls == ["put attempt-000001", *written, *deleted]


def test_lower_attempt_cannot_start(saved: Path):
    Checkpoints(LocalStore(saved), attempt=5)
    with pytest.raises(SupersededError):
        Checkpoints(LocalStore(saved), attempt=4)


def test_later_attempt_counts_as_newer_even_at_an_earlier_epoch(saved: Path):
    save(Checkpoints(LocalStore(saved), attempt=2), 2)
    checkpoint = newest_checkpoint(LocalStore(saved))
    assert checkpoint is not None
    assert (checkpoint.manifest.attempt, checkpoint.manifest.epoch) == (2, 2)


def test_half_written_file_of_a_killed_writer_is_swept_away(tmp_path: Path):
    (tmp_path / "model-000001-000001.safetensors.0123.tmp").write_bytes(b"half")
    Checkpoints(LocalStore(tmp_path), attempt=1)
    assert not list(tmp_path.glob("*.tmp"))


def test_failed_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        LocalStore(tmp_path).put("a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_fault_of_the_file_system_that_passes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, faults = os.replace, [OSError(errno.EIO, "Input/output error")] * 2

    def shaky(source: Path, target: Path) -> None:
        if faults:
            raise faults.pop()
        real(source, target)

    monkeypatch.setattr("os.replace", shaky)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    LocalStore(tmp_path).put("a", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
