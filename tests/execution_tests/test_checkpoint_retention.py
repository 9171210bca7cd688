"""Which checkpoints of finished trials are kept."""

from dataclasses import replace
from pathlib import Path

from builders import make_history, make_trial
from fake_ledger import FakeLedger

from fgseg.checkpoints.manifest import Blob, Manifest, list_manifests
from fgseg.storage.store import LocalStore
from search.execution.checkpoint_retention import CheckpointRetention
from search.ledger.records import State, TrialRecord
from search.study.location import StudyLocation


def trial(number: int, value: float | None, state: State = State.COMPLETE, selected: int = 2) -> TrialRecord:
    chosen = selected if state is State.COMPLETE else None
    return make_trial(number, state, epochs=make_history(0.9, value or 0.0), value=value, selected=chosen)


def write_checkpoints(folder: Path, numbers: range) -> None:
    """Two checkpoints for each trial, without real weights."""
    for number in numbers:
        store = LocalStore(folder / "s" / "trials" / str(number))
        for epoch in (1, 2):
            name = f"model-000001-{epoch:06d}.safetensors"
            store.put(name, b"weights")
            manifest = Manifest(1, epoch, [Blob(name, 7, "")], [])
            store.put(manifest.name, manifest.to_bytes())


def kept(folder: Path) -> dict[int, list[int]]:
    """The epochs of which a trial has a checkpoint, by trial."""
    return {
        int(p.name): [m.epoch for m in list_manifests(LocalStore(p))]
        for p in sorted((folder / "s" / "trials").iterdir())
    }


def retention(folder: Path, trials: list[TrialRecord], keep: int = 1) -> CheckpointRetention:
    """The retention of a study in a folder, whose ledger holds these trials."""
    return CheckpointRetention(keep, StudyLocation(str(folder), "s", ""), FakeLedger(*trials))  # type: ignore[arg-type]


def test_best_trials_and_the_start_point_keep_their_selected_epoch(tmp_path: Path):
    write_checkpoints(tmp_path, range(4))
    trials = [trial(0, 0.1), trial(1, 0.3), trial(2, 0.2), trial(3, None, State.PRUNED)]
    retention(tmp_path, trials).apply()
    assert kept(tmp_path) == {0: [2], 1: [2], 2: [], 3: []}
    assert list((tmp_path / "s" / "trials" / "2").glob("*.safetensors")) == []


def test_running_trial_is_left_alone(tmp_path: Path):
    write_checkpoints(tmp_path, range(1))
    retention(tmp_path, [trial(0, None, State.RUNNING)]).apply()
    assert kept(tmp_path) == {0: [2, 1]}


def test_trial_that_falls_from_the_best_loses_its_weights(tmp_path: Path):
    write_checkpoints(tmp_path, range(3))
    ledger = FakeLedger(trial(0, 0.1), trial(1, 0.2), trial(2, None, State.RUNNING))
    one = CheckpointRetention(1, StudyLocation(str(tmp_path), "s", ""), ledger)  # type: ignore[arg-type]
    one.apply()
    assert kept(tmp_path)[1] == [2]
    ledger.put(trial(2, 0.3))
    one.on_trial_end(ledger.trial(2))
    assert kept(tmp_path) == {0: [2], 1: [], 2: [2]}


def test_best_epoch_is_kept_where_it_stands_for_the_trial(tmp_path: Path):
    write_checkpoints(tmp_path, range(1))
    retention(tmp_path, [trial(0, 0.1, selected=1)]).apply()
    assert kept(tmp_path) == {0: [1]}


def test_best_trial_is_kept_whether_changed_batches_count_or_not(tmp_path: Path):
    write_checkpoints(tmp_path, range(4))
    changed = replace(trial(3, 0.4), overrides={"train.batch_size": 1})
    retention(tmp_path, [trial(0, 0.1), trial(1, 0.3), trial(2, 0.2), changed]).apply()
    assert kept(tmp_path) == {0: [2], 1: [2], 2: [], 3: [2]}
