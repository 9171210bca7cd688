"""Every kind of damage that the audit claims to detect is done to a right study, and must be reported."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_untrained
from kept_study import change, epoch, lines, named, rewrite_manifest
from PIL import Image
from thin_street import THIN_STREET

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.storage.store import LocalStore
from fgseg.training.test_evaluation import save_test_result
from fgseg.visual.overlays import is_whole
from search.audit.files import audit_checkpoints
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation
from search.tracking.sync import sync

pytestmark = pytest.mark.slow

OF_TRIAL = "(SELECT run_uuid FROM tags WHERE key = 'fgseg.trial' AND value = '0')"
OF_STUDY = "(SELECT run_uuid FROM tags WHERE key = 'fgseg.kind' AND value = 'study')"
OF_CHECKPOINT = "(SELECT run_uuid FROM tags WHERE key = 'fgseg.kind' AND value = 'checkpoint')"
OTHER_MIOU = "UPDATE fgsearch_epochs SET result = json_set(result, '$.miou', 0.15) WHERE number = 0 AND epoch = 2"
NEWEST, OLDER = (f"checkpoint-000001-00000{epoch}" for epoch in (3, 2))


@dataclass(frozen=True)
class Statement:
    """Damage by an SQL statement to a database of the storage."""

    database: str
    statement: str

    def __call__(self, location: StudyLocation) -> None:
        change(Path(location.storage) / self.database, self.statement)


def ledger(statement: str) -> Statement:
    return Statement("s/study.db", statement)


def mlflow(statement: str) -> Statement:
    return Statement("mlflow.db", statement)


def trial_folder(location: StudyLocation, number: int = 0) -> Path:
    return Path(location.folder) / "trials" / str(number)


def swap(first: str, second: str) -> Callable[[StudyLocation], None]:
    """Exchange two files or folders below the folder of trials."""

    def damage(location: StudyLocation) -> None:
        one, other = (Path(location.folder) / "trials" / name for name in (first, second))
        between = one.with_name("between")
        for source, target in ((one, between), (other, one), (between, other)):
            source.rename(target)

    return damage


def rewrite(name: str, data: bytes | None) -> Callable[[StudyLocation], None]:
    """Write a file of the study's folder; None deletes it."""

    def damage(location: StudyLocation) -> None:
        path = Path(location.folder) / name
        path.unlink() if data is None else path.write_bytes(data)

    return damage


def shorten(name: str) -> Callable[[StudyLocation], None]:
    """Cut off the last byte of a file of trial 0."""

    def damage(location: StudyLocation) -> None:
        path = trial_folder(location) / name
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def flip_bit(name: str) -> Callable[[StudyLocation], None]:
    """Flip one bit in the middle of a file of trial 0."""

    def damage(location: StudyLocation) -> None:
        path = trial_folder(location) / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return damage


def add_epoch_to_checkpoint(location: StudyLocation) -> None:
    history = [epoch(k, trial=1).to_json() for k in (1, 2)]
    rewrite_manifest(trial_folder(location, 1) / "checkpoint-000001-000001.json", history=history)


def change_epoch_of_checkpoint(name: str) -> Callable[[StudyLocation], None]:
    def damage(location: StudyLocation) -> None:
        path = trial_folder(location) / f"{name}.json"
        first, *rest = json.loads(path.read_text())["history"]
        rewrite_manifest(path, history=[first | {"confusion": [[4] * 7] * 7}, *rest])

    return damage


def change_attempt_of_checkpoint(location: StudyLocation) -> None:
    rewrite_manifest(trial_folder(location) / f"{NEWEST}.json", attempt=2)


def claim_checkpoint_of_later_attempt(location: StudyLocation) -> None:
    change_attempt_of_checkpoint(location)
    (trial_folder(location) / f"{NEWEST}.json").rename(trial_folder(location) / "checkpoint-000002-000003.json")


def save_overlay(location: StudyLocation) -> None:
    """Write an overlay of which one bit is flipped."""
    png = BytesIO()
    Image.fromarray(np.arange(3 * 64, dtype=np.uint8).reshape(8, 8, 3)).save(png, "PNG")
    assert is_whole(png.getvalue())
    (trial_folder(location) / "overlay-1-town.png").write_bytes(png.getvalue())
    flip_bit("overlay-1-town.png")(location)


def save_test(location: StudyLocation) -> str:
    """Write a result on the test split into the folder of trial 0; returns it as the ledger stores it."""
    confusion, boundary = torch.eye(7, dtype=torch.int64).repeat(4, 1, 1) + 1, torch.full((4, 7, 2), 3)
    result = save_test_result(LocalStore(trial_folder(location)), 3, 1, confusion, boundary, THIN_STREET)
    return json.dumps(result.to_json())


def write_test(location: StudyLocation) -> None:
    save_test(location)


def record_test(location: StudyLocation) -> None:
    change(
        Path(location.folder) / "study.db", "UPDATE fgsearch_trials SET test = ? WHERE number = 0", save_test(location)
    )


def record_other_test(location: StudyLocation) -> None:
    record_test(location)
    ledger("UPDATE fgsearch_trials SET test = json_set(test, '$.images', 9) WHERE number = 0")(location)


def flip_bit_of_test(location: StudyLocation) -> None:
    save_test(location)
    flip_bit("counts-000001.safetensors")(location)


IN_LEDGER = {
    "the ledger contains an invalid epoch or trial: ": ledger(
        "UPDATE fgsearch_epochs SET result = '{}' WHERE number = 0 AND epoch = 1"
    ),
    # Epochs: dropped, duplicated, changed, in another order, of another attempt, too many.
    "trial 0: its epochs are [1, 3], must be 1 to 2, each once": ledger(
        "DELETE FROM fgsearch_epochs WHERE number = 0 AND epoch = 2"
    ),
    "trial 0: COMPLETE with 2 of 3 epochs": ledger("DELETE FROM fgsearch_epochs WHERE number = 0 AND epoch = 3"),
    "trial 0: its selected epoch 3 is not in the ledger": ledger(
        "DELETE FROM fgsearch_epochs WHERE number = 0 AND epoch = 3"
    ),
    "trial 1: checkpoint-000001-000001.json holds an epoch that the ledger lacks": ledger(
        "DELETE FROM fgsearch_epochs WHERE number = 1 AND epoch = 1"
    ),
    "trial 0: its epochs are [1, 2, 3, 3], must be 1 to 4, each once": ledger(
        "INSERT INTO fgsearch_epochs SELECT study, number, 4, attempt, result, seq, stop, stop_seq "
        "FROM fgsearch_epochs WHERE number = 0 AND epoch = 3"
    ),
    "trial 0: has 4 epochs, its settings say 3": ledger(
        "INSERT INTO fgsearch_epochs SELECT study, number, 4, attempt, json_set(result, '$.epoch', 4), seq, stop, "
        "stop_seq FROM fgsearch_epochs WHERE number = 0 AND epoch = 3"
    ),
    f"trial 0: {NEWEST}.json holds another epoch 2 than the ledger": ledger(OTHER_MIOU),
    f"trial 0: {OLDER}.json holds another epoch 2 than the ledger": ledger(OTHER_MIOU),
    "trial 2: epoch 2 is of attempt 7, must be one of 1 to 1": ledger(
        "UPDATE fgsearch_epochs SET result = json_set(result, '$.attempt', 7) WHERE number = 2 AND epoch = 2"
    ),
    "trial 2: epoch 2 was reported by attempt 7, must be one of 1 to 1": ledger(
        "UPDATE fgsearch_epochs SET attempt = 7 WHERE number = 2 AND epoch = 2"
    ),
    "trial 0: its writes have the numbers [2, 1, 3, 3, 4], must ascend": ledger(
        "UPDATE fgsearch_epochs SET seq = 1 WHERE number = 0 AND epoch = 1"
    ),
    # Trials: numbers, state, value, end.
    "the trial numbers are [0, 1, 7], must be 0 to 2, each once": ledger(
        "UPDATE fgsearch_trials SET number = 7 WHERE number = 2"
    ),
    "the trial numbers are [0, 2], must be 0 to 1, each once": ledger("DELETE FROM fgsearch_trials WHERE number = 1"),
    "trial 1: was added by write 0, trial 0 by ": ledger("UPDATE fgsearch_trials SET asked_seq = 0 WHERE number = 1"),
    "trials/2: belongs to no trial of the ledger": ledger("DELETE FROM fgsearch_trials WHERE number = 2"),
    "2 trials have ended, the budget says 3": ledger("DELETE FROM fgsearch_trials WHERE number = 2"),
    "trial 0: its value is 0.9, that of epoch 3 is 0.3": ledger(
        "UPDATE fgsearch_trials SET value = 0.9 WHERE number = 0"
    ),
    "trial 0: its selected epoch is 2, which train.select=last does not select": ledger(
        "UPDATE fgsearch_trials SET selected = 2, value = 0.2 WHERE number = 0"
    ),
    "trial 0: FAIL with a value and a selected epoch": ledger(
        "UPDATE fgsearch_trials SET state = 'fail', reason = 'out of memory' WHERE number = 0"
    ),
    "trial 1: COMPLETE with 1 of 3 epochs": ledger("UPDATE fgsearch_trials SET state = 'complete' WHERE number = 1"),
    "trial 0: PRUNED after its last epoch, 3": ledger(
        "UPDATE fgsearch_trials SET state = 'pruned', reason = 'weak' WHERE number = 0"
    ),
    "trial 1: PRUNED without a reason": ledger("UPDATE fgsearch_trials SET reason = NULL WHERE number = 1"),
    "trial 2: FAIL without a reason": ledger("UPDATE fgsearch_trials SET reason = NULL WHERE number = 2"),
    "trial 2: ended as FAIL without ever being started": ledger(
        "UPDATE fgsearch_trials SET attempt = 0 WHERE number = 2"
    ),
    "trial 2: FAIL without the number of a write that ended it": ledger(
        "UPDATE fgsearch_trials SET ended_seq = NULL WHERE number = 2"
    ),
    "interrupted: 1 open (trials 2), and no driver is alive": ledger(
        "UPDATE fgsearch_trials SET state = 'running', ended = NULL WHERE number = 2"
    ),
    "trial 0: COMPLETE without a result on the test split": ledger(
        "UPDATE fgsearch_trials SET repeat_seed = 0 WHERE number = 0"
    ),
    "trial 0: evaluated on the test split, which a search must not use": record_test,
    # The budget.
    "3 trials have ended, the budget says 9": ledger(
        "UPDATE fgsearch_studies SET metadata = json_set(metadata, '$.budget', 9)"
    ),
    "the ledger contains no budget: its driver died before it recorded one": ledger(
        "UPDATE fgsearch_studies SET metadata = json_set(metadata, '$.budget', 0)"
    ),
}
"""What the audit reports, and the damage to the ledger that it reports so."""

IN_FILES: dict[str, Callable[[StudyLocation], None]] = {
    # Checkpoints: swapped, of another attempt, with other epochs, damaged, missing.
    f"trial 1: {NEWEST}.json holds another epoch 1 than the ledger": swap("0", "1"),
    "trial 0: no checkpoint is of its selected epoch 3": swap("0", "2"),
    f"trial 0: {NEWEST}.json is of attempt 1, epoch 2": swap(f"0/{NEWEST}.json", f"0/{OLDER}.json"),
    f"trial 0: {OLDER}.json is of attempt 1, epoch 3": swap(f"0/{NEWEST}.json", f"0/{OLDER}.json"),
    f"trial 0: {NEWEST}.json cannot be loaded: model-000001-000003.safetensors was altered": swap(
        "0/model-000001-000003.safetensors", "0/model-000001-000002.safetensors"
    ),
    f"trial 0: {NEWEST}.json is of attempt 2, epoch 3": change_attempt_of_checkpoint,
    "trial 0: checkpoint-000002-000003.json is of attempt 2, epoch 3": claim_checkpoint_of_later_attempt,
    f"trial 0: {NEWEST}.json holds another epoch 1 than the ledger": change_epoch_of_checkpoint(NEWEST),
    f"trial 0: {OLDER}.json holds another epoch 1 than the ledger": change_epoch_of_checkpoint(OLDER),
    "trial 1: checkpoint-000001-000001.json holds an epoch that the ledger lacks": add_epoch_to_checkpoint,
    f"trial 0: {NEWEST}.json cannot be loaded: model-000001-000003.safetensors has ": shorten(
        "model-000001-000003.safetensors"
    ),
    f"trial 0: {NEWEST}.json cannot be loaded: state-000001-000003.pt has ": shorten("state-000001-000003.pt"),
    f"trial 0: {NEWEST}.json cannot be loaded: [Errno 2]": rewrite("trials/0/model-000001-000003.safetensors", None),
    f"trial 0: {NEWEST}.json cannot be loaded: Expecting": rewrite(f"trials/0/{NEWEST}.json", b"{"),
    "trial 0: the best trial has no checkpoint": lambda location: shutil.rmtree(trial_folder(location)),
    # Other files.
    "trials/8: belongs to no trial of the ledger": lambda location: trial_folder(location, 8).mkdir(),
    "study.db.tmp: a temporary file was left behind": rewrite("study.db.tmp", b""),
    "trial 0: the overlay of town.png is damaged": save_overlay,
    "trial 0: its test result cannot be read: counts-000001.safetensors was altered": flip_bit_of_test,
    "trial 0: its folder holds another test result than the ledger": record_other_test,
    "trial 0: its folder holds a test result that the ledger lacks": write_test,
    f"{UNTRAINED}: cannot be read; delete it, and search.report writes it again": rewrite(UNTRAINED, b"{"),
}
"""What the audit reports, and the damage to the study's files that it reports so."""

IN_MLFLOW = {
    # Epochs: dropped, in part, duplicated, changed, unknown.
    "trial 0: epoch 2 in MLflow is lacking: val/miou, train/loss, train/images_per_s, and 6 more": mlflow(
        f"DELETE FROM metrics WHERE step = 2 AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: epoch 2 in MLflow is lacking: train/loss": mlflow(
        f"DELETE FROM metrics WHERE step = 2 AND key = 'train/loss' AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: epoch 1 in MLflow is there more than once: train/loss/ssim": mlflow(
        "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
        f"WHERE step = 1 AND key = 'train/loss/ssim' AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: epoch 3 in MLflow differs from the ledger: val/iou/fence": mlflow(
        f"UPDATE metrics SET value = 0.5 WHERE step = 3 AND key = 'val/iou/fence' AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: epoch 4 in MLflow is unknown to the ledger: train/loss": mlflow(
        "INSERT INTO metrics SELECT key, value, timestamp, run_uuid, 4, is_nan FROM metrics "
        f"WHERE step = 3 AND key = 'train/loss' AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 2: epoch 2 in MLflow is unknown to the ledger: ": ledger(
        "DELETE FROM fgsearch_epochs WHERE number = 2 AND epoch = 2"
    ),
    "trial 0: epoch 2 in MLflow differs from the ledger: val/miou": ledger(OTHER_MIOU),
    # Params: changed in either, missing.
    "trial 0: loss.ssim is 0.7 in MLflow, 0.4 in the ledger": mlflow(
        f"UPDATE params SET value = '0.7' WHERE key = 'loss.ssim' AND run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: loss.ssim is 0.4 in MLflow, 0.7 in the ledger": ledger(
        """UPDATE fgsearch_trials SET params = '{"loss.ssim": 0.7}' WHERE number = 0"""
    ),
    "trial 0: loss.ssim is None in MLflow, 0.4 in the ledger": mlflow(
        f"DELETE FROM params WHERE key = 'loss.ssim' AND run_uuid IN {OF_TRIAL}"
    ),
    # Runs: missing, doubled, orphaned, with another status.
    "trial 0: 0 runs in MLflow instead of one": mlflow(
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid IN {OF_TRIAL}"
    ),
    "trial 0: 2 runs in MLflow instead of one": mlflow(
        "UPDATE tags SET value = '0' WHERE key = 'fgseg.trial' AND value = '1'"
    ),
    "trial 7: has a run in MLflow, the ledger knows no such trial": mlflow(
        "UPDATE tags SET value = '7' WHERE key = 'fgseg.trial' AND value = '1'"
    ),
    "trial 2: has a run in MLflow, the ledger knows no such trial": ledger(
        "DELETE FROM fgsearch_trials WHERE number = 2"
    ),
    "trial 0: MLflow says RUNNING, must be FINISHED": mlflow(
        f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid IN {OF_TRIAL}"
    ),
    "trial 1: MLflow says KILLED, must be KILLED (fgseg.pruned: epoch 1)": mlflow(
        "DELETE FROM tags WHERE key = 'fgseg.pruned'"
    ),
    # The parent run: missing, a second one, with another status, another best trial, other points.
    "the study: 0 runs in MLflow instead of one": mlflow(
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid IN {OF_STUDY}"
    ),
    "the study: 2 runs in MLflow instead of one": mlflow(
        f"UPDATE tags SET value = 'study' WHERE key = 'fgseg.kind' AND run_uuid IN {OF_TRIAL}"
    ),
    "the study: MLflow says RUNNING, must be FINISHED": mlflow(
        f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid IN {OF_STUDY}"
    ),
    "the study: MLflow names trial 1 the best, must be trial 0": mlflow(
        "UPDATE tags SET value = '1' WHERE key = 'fgseg.best_trial'"
    ),
    "the study: MLflow shows val/miou 0.5 after 3 trials, must be 0.3": mlflow(
        f"UPDATE metrics SET value = 0.5 WHERE key = 'val/miou' AND run_uuid IN {OF_STUDY}"
    ),
    "the study: step 3 in MLflow is there more than once: val/miou": mlflow(
        "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
        f"WHERE key = 'val/miou' AND run_uuid IN {OF_STUDY}"
    ),
}
"""What the audit reports, and the damage to MLflow or to the ledger that it reports so by comparing them."""

OF_UNTRAINED = {
    "the untrained checkpoint: 0 runs in MLflow instead of one": mlflow(
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid IN {OF_CHECKPOINT}"
    ),
    "the untrained checkpoint: epoch 0 in MLflow differs from the ledger: val/miou": mlflow(
        f"UPDATE metrics SET value = 0.5 WHERE key = 'val/miou' AND run_uuid IN {OF_CHECKPOINT}"
    ),
}
"""The same for a study with the result of its untrained checkpoint."""


@pytest.mark.parametrize("line", IN_LEDGER)
def test_damage_to_the_ledger_is_reported(location: StudyLocation, line: str):
    IN_LEDGER[line](location)
    assert named(line, lines(location, tracking=False))


@pytest.mark.parametrize("line", IN_FILES)
def test_damage_to_files_is_reported(location: StudyLocation, line: str):
    IN_FILES[line](location)
    assert named(line, lines(location, tracking=False))


@pytest.mark.parametrize("line", IN_MLFLOW)
def test_damage_to_mlflow_is_reported(location: StudyLocation, line: str):
    IN_MLFLOW[line](location)
    assert named(line, lines(location))


@pytest.mark.parametrize("line", OF_UNTRAINED)
def test_damage_to_the_run_of_the_untrained_checkpoint_is_reported(location: StudyLocation, line: str):
    LocalStore(location.folder).put(UNTRAINED, json.dumps(make_untrained().to_json()).encode())
    sync(location)
    assert lines(location) == []
    OF_UNTRAINED[line](location)
    assert lines(location) == [line]


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_reported(location: StudyLocation):
    """Each of 40 positions of each file; the files of one checkpoint are its manifest, weights and optimizer state."""
    record, folder = open_ledger(location).trial(0), trial_folder(location)
    files = sorted(folder.glob("*-000001-000003.*"))
    assert len(files) == 3
    for path in files:
        data = path.read_bytes()
        for position in np.linspace(0, len(data) - 1, 40).astype(int):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            assert list(audit_checkpoints(LocalStore(folder), record)), (path.name, position)
        path.write_bytes(data)
