"""The head that a training inherits from a checkpoint, and the checkpoint's own result as its reference."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import two_processes
from filelock import FileLock
from safetensors.torch import load_file
from small_checkpoint import LABELS, save_checkpoint

from fgseg.checkpoints.untrained_result import UNTRAINED, read_untrained
from fgseg.config.settings import RunConfig
from fgseg.data import fingerprint, load_splits
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from fgseg.train import main as train_command
from fgseg.training import inherited_head
from fgseg.training.inherited_head import inherited_rows
from fgseg.training.loop import train
from fgseg.training.trainer import build_training_state
from fgseg.training.untrained import evaluate_untrained, evaluate_untrained_once

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tiny, tmp_path: Path) -> RunConfig:
    """A training from a small checkpoint, with a cache of its own."""
    weights, cache = save_checkpoint(tmp_path / "weights"), str(tmp_path / "cache")
    return tiny(model__name=weights, train__epochs=2, data__cache=cache)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoint of every fit that is made."""
    made: list[Path] = []
    fit = inherited_head.fit_to_frames

    def note(folder, *arguments):
        made.append(folder)
        return fit(folder, *arguments)

    monkeypatch.setattr(inherited_head, "fit_to_frames", note)
    return made


def rows_of(run: RunConfig):
    return inherited_rows(run, load_splits(run.data, ("train",))["train"])


def test_head_is_fitted_once_and_read_from_the_cache_by_later_trials(run: RunConfig, fits: list[Path]):
    first, second = rows_of(run), rows_of(run)
    assert len(fits) == 1
    assert first is not None and second is not None
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_damaged_rows_are_fitted_again(run: RunConfig, fits: list[Path], tmp_path: Path):
    first = rows_of(run)
    (path,) = (tmp_path / "cache" / "heads").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    second = rows_of(run)
    assert len(fits) == 2
    assert first is not None and second is not None and torch.equal(first.weight, second.weight)


def test_other_weights_under_the_same_name_are_fitted_anew(run: RunConfig, fits: list[Path]):
    rows_of(run)
    save_checkpoint(Path(run.model.name), seed=1)
    rows_of(run)
    assert len(fits) == 2


def test_training_begins_with_the_inherited_rows(run: RunConfig):
    rows = rows_of(run)
    assert rows is not None
    classifier = build_training_state(run, 6, rows).model.decode_head.classifier
    assert torch.equal(classifier.weight.detach().flatten(1).cpu(), rows.weight)


def test_new_head_of_random_weights_or_by_request_fits_nothing(run: RunConfig, tiny, fits: list[Path]):
    assert rows_of(tiny()) is None
    assert rows_of(run.model_copy(update={"model": run.model.model_copy(update={"head": "new"})})) is None
    assert fits == []


def test_model_with_the_same_classes_keeps_its_head_as_it_is(tiny, tmp_path: Path):
    train(tiny(train__epochs=1), tmp_path / "first")
    first = build_training_state(tiny(), 6).model
    first.save_pretrained(tmp_path / "weights")
    again = tiny(model__name=str(tmp_path / "weights"))
    assert rows_of(again) is None
    classifier = build_training_state(again, 6).model.decode_head.classifier
    assert torch.equal(classifier.weight, first.decode_head.classifier.weight)


@pytest.mark.slow
def test_training_from_an_inherited_head_resumes_to_the_last_bit(run: RunConfig, tmp_path: Path):
    def stop(result: EpochResult) -> None:
        raise KeyboardInterrupt

    whole = train(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "cut", stop)
    continued = train(run, tmp_path / "cut")
    assert [(e.miou, e.loss) for e in continued] == [(e.miou, e.loss) for e in whole]


@pytest.mark.slow
def test_two_processes_begin_with_the_same_inherited_head_as_one(
    environment: dict[str, str], run: RunConfig, tmp_path: Path
):
    command = two_processes.command(tmp_path / "both", str(run.data.cache), f"model.name={run.model.name}")
    started = two_processes.start([sys.executable, "-m", "fgseg.train", *command], os.environ | environment)
    ends = [(process.communicate(timeout=300)[0], process.returncode) for process in started]
    assert [code for _, code in ends] == [0, 0], ends
    command = two_processes.command(tmp_path / "one", str(run.data.cache), f"model.name={run.model.name}")
    assert train_command(command) == 0
    both, one = (load_file(next((tmp_path / name).glob("model-*.safetensors"))) for name in ("both", "one"))
    key = "decode_head.classifier.weight"
    # Dropout differs by rank: three steps of AdamW at a falling rate of 3e-3 move each weight by about 6e-3.
    assert (both[key] - one[key]).abs().max() < 0.02 < one[key].abs().max()


def test_untrained_checkpoint_is_evaluated_once_with_its_own_head(run: RunConfig, tmp_path: Path):
    store = LocalStore(tmp_path / "study")
    evaluate_untrained_once(run, str(tmp_path / "study"), "val")
    first = store.get(UNTRAINED)
    evaluate_untrained_once(run, str(tmp_path / "study"), "val")
    assert store.get(UNTRAINED) == first
    result = read_untrained(store)
    assert result is not None
    assert result.data == fingerprint(load_splits(run.data, ("train", "val")))
    assert sum(pixels for image in result.confusion for row in image for pixels in row) == 4 * 64 * 128
    again = evaluate_untrained(run, LABELS, "val")
    assert json.dumps(replace(again, seconds=result.seconds).to_json()) == json.dumps(result.to_json())


def test_test_split_of_repeats_has_the_counts_of_boundaries(run: RunConfig):
    result = evaluate_untrained(run, LABELS, "test")
    assert [len(image) for image in result.boundary] == [7] * 4
    assert set(result.metrics()) <= {"test/miou", "test/thin_miou", *(f"test/iou/{key}" for key in result.iou)}


@pytest.mark.parametrize(("change", "expected"), [({"head": "new"}, True), ({"name": "small"}, False)])
def test_study_has_an_untrained_checkpoint_if_it_starts_from_one_whatever_its_head(
    run: RunConfig, tmp_path: Path, change: dict[str, str], expected: bool
):
    other = run.model_copy(update={"model": run.model.model_copy(update=change)})
    evaluate_untrained_once(other, str(tmp_path / "study"), "val")
    assert (tmp_path / "study").exists() is expected


def test_second_worker_does_not_wait_for_the_evaluation_of_the_first(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    others: list[FileLock] = []

    def taken(path: Path, **options: float) -> FileLock:
        others.append(FileLock(path))
        others[-1].acquire()
        return FileLock(path, **options)

    monkeypatch.setattr("fgseg.training.untrained.FileLock", taken)
    evaluate_untrained_once(run, str(tmp_path / "study"), "val")
    assert len(others) == 1 and read_untrained(LocalStore(tmp_path / "study")) is None


def test_damaged_result_counts_as_missing(tmp_path: Path):
    store = LocalStore(tmp_path)
    for content in (b"", b"[]", b"{}", b'{"iou": {}, "miou": 1, "other": 2}'):
        store.put(UNTRAINED, content)
        assert read_untrained(store) is None
