"""A finished study with a checkpoint, for tests of the audit and of commands."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import torch
from builders import make_epoch
from optuna.distributions import FloatDistribution
from small_ledger import start_search
from thin_street import FOREGROUND

from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.study.location import StudyLocation, find_location
from search.tracking.sync import sync

SPACE = {"loss.ssim": FloatDistribution(0.05, 5.0, log=True)}
SETTINGS = RunConfig().flat() | {"train.epochs": 3, "loss.ssim": 0.4}
BAS: dict[str, Any] = {"name": "bas"}
IDENTITY = {
    "version": "1",
    "space": BAS,
    "settings": {key: value for key, value in SETTINGS.items() if key not in SPACE},
    "sampler": "random",
    "data": "f00d",
}


def epoch(number: int, trial: int, attempt: int = 1) -> EpochResult:
    """An epoch whose mIoU grows with its number and falls with its trial."""
    miou = 0.1 * number - 0.01 * trial
    iou = {c.key: miou for c in FOREGROUND} | {"pole": math.nan}
    changes = {"confusion": [[3] * 7] * 7, "loss": 0.7, "terms": {"ssim": 0.2}, "images_per_s": 9.5, "seconds": 4.25}
    return make_epoch(number, miou, iou=iou, wall_time=1e9 + 100 * trial + number, attempt=attempt, **changes)


def begin(storage: Path, study: str = "s", trials: int = 3, space: dict[str, Any] = BAS) -> Ledger:
    """A study's ledger as a fresh driver opens it; the ranges of the space's settings are those of `loss.ssim`."""
    (storage / study).mkdir(parents=True, exist_ok=True)
    ledger = Ledger.create(f"sqlite:///{storage / study / 'study.db'}", study)
    ledger.record_run(
        StudyMetadata(
            *(study, space["name"], "Boundary-aware", "quickstart", SETTINGS),
            identity=IDENTITY | {"space": space},
            budget=trials,
            keep_checkpoints=1,
        )
    )
    ranges = dict.fromkeys(space.get("search", SPACE), SPACE["loss.ssim"])
    start_search(
        ledger, ranges, dict.fromkeys(ranges, 0.4), trials=trials, sampler="random", pruner="none", epochs=3, seed=42
    )
    return ledger


def train(ledger: Ledger, folder: Path, epochs: int) -> int:
    """Ask for a trial, and write and report this many epochs of it; returns its number."""
    ask = ledger.next_attempt()
    assert ask is not None
    checkpoints = Checkpoints(LocalStore(folder / "trials" / str(ask.number)), ask.attempt)
    history = [epoch(k, ask.number, ask.attempt) for k in range(1, epochs + 1)]
    for k in range(1, epochs + 1):
        checkpoints.save({"weight": torch.full((3,), float(k))}, {"step": k}, history[:k], "last")
    ledger.report(ask.number, ask.attempt, history)
    return ask.number


def finished_study(storage: Path, study: str = "s", space: dict[str, Any] = BAS) -> StudyLocation:
    """A study of three trials, one of each ending, with its MLflow runs."""
    ledger, folder = begin(storage, study, space=space), storage / study
    ledger.complete(train(ledger, folder, epochs=3), 1)
    ledger.prune(train(ledger, folder, epochs=1), 1)
    ledger.fail(train(ledger, folder, epochs=2), 1, "the loss is nan in epoch 3")
    location = find_location(storage, study)
    sync(location)
    return location


def change(database: Path, statement: str, *values: Any) -> None:
    """Alter a SQLite file behind everybody's back; at least one row must be hit."""
    with sqlite3.connect(database) as connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Change entries of a checkpoint's manifest."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lines(location: StudyLocation, **options: Any) -> list[str]:
    """What the audit says of a study."""
    return audit(location.storage, location.study, **options)


def named(line: str, found: list[str]) -> bool:
    """Whether the audit says this; the last digits of a float, as in 0.30000000000000004, are left out."""
    return any(text.startswith(line) for text in found)
