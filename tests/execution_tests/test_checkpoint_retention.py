"""Which checkpoints of finished trials are kept."""

from dataclasses import replace
from pathlib import Path

from builders import make_history, make_trial

from fgseg.checkpoints.manifest import Manifest, list_manifests
from fgseg.storage.store import LocalStore
from search.execution.checkpoint_retention import CheckpointRetention
from search.ledger.records import State, TrialRecord


def trial(number: int, value: float | None, state: State = State.COMPLETE, selected: int = 2) -> TrialRecord:
    chosen = selected if state is State.COMPLETE else None
    return make_trial(number, state, epochs=make_history(0.9, value or 0.0), value=value, selected=chosen)


def write_checkpoints(folder: Path, numbers: range) -> None:
    """Two checkpoints for each trial, without real weights."""
    for number in numbers:
        store = LocalStore(folder / str(number))
        for epoch in (1, 2):
            name = f"model-000001-{epoch:06d}.safetensors"
            store.put(name, b"weights")
            manifest = Manifest(1, epoch, {name: {"bytes": 7, "sha256": ""}}, [])
            store.put(manifest.name, manifest.to_bytes())


def kept(folder: Path) -> dict[int, list[int]]:
    """The epochs of which a trial has a checkpoint, by trial."""
    return {int(p.name): [m.epoch for m in list_manifests(LocalStore(p))] for p in sorted(folder.iterdir())}


def retention(folder: Path, keep: int = 1) -> CheckpointRetention:
    return CheckpointRetention(keep, lambda number: str(folder / str(number)))


def test_best_trials_and_the_start_point_keep_their_selected_epoch(tmp_path: Path):
    write_checkpoints(tmp_path, range(4))
    trials = [trial(0, 0.1), trial(1, 0.3), trial(2, 0.2), trial(3, None, State.PRUNED)]
    retention(tmp_path).apply(trials)
    assert kept(tmp_path) == {0: [2], 1: [2], 2: [], 3: []}
    assert list((tmp_path / "2").glob("*.safetensors")) == []


def test_running_trial_is_left_alone(tmp_path: Path):
    write_checkpoints(tmp_path, range(1))
    retention(tmp_path).apply([trial(0, None, State.RUNNING)])
    assert kept(tmp_path) == {0: [2, 1]}


def test_trial_that_falls_from_the_best_loses_its_weights(tmp_path: Path):
    write_checkpoints(tmp_path, range(3))
    one = retention(tmp_path)
    one.apply([trial(0, 0.1), trial(1, 0.2), trial(2, None, State.RUNNING)])
    assert kept(tmp_path)[1] == [2]
    one.apply([trial(0, 0.1), trial(1, 0.2), trial(2, 0.3)])
    assert kept(tmp_path) == {0: [2], 1: [], 2: [2]}


def test_best_epoch_is_kept_where_it_stands_for_the_trial(tmp_path: Path):
    write_checkpoints(tmp_path, range(1))
    retention(tmp_path).apply([trial(0, 0.1, selected=1)])
    assert kept(tmp_path) == {0: [1]}


def test_best_trial_is_kept_whether_changed_batches_count_or_not(tmp_path: Path):
    write_checkpoints(tmp_path, range(4))
    changed = replace(trial(3, 0.4), overrides={"train.batch_size": 1})
    retention(tmp_path).apply([trial(0, 0.1), trial(1, 0.3), trial(2, 0.2), changed])
    assert kept(tmp_path) == {0: [2], 1: [2], 2: [], 3: [2]}
