"""A study whose one trial was really trained, for three epochs on six small scenes: its model is to be used."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY
from kept_study import IDENTITY, SPACE
from small_ledger import start_search
from thin_street import CLASSES

from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult
from fgseg.storage.store import join
from fgseg.training.loop import train
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.study.location import StudyLocation, find_location

STUDY = "tiny-bas"


def tiny_run(cache: str) -> RunConfig:
    """The settings of the trial."""
    return build([Layer("test", TINY | {"data.cache": cache, "train.seed": 42})])


def train_trial(ledger: Ledger, location: StudyLocation, run: RunConfig) -> list[EpochResult]:
    """Ask for a trial, train it as a worker does, and finish it."""
    ask = ledger.next_attempt()
    assert ask is not None
    history = train(run, join(location.folder, "trials", str(ask.number)), attempt=ask.attempt)
    ledger.report(ask.number, ask.attempt, history)
    ledger.complete(ask.number, ask.attempt)
    return history


def trained_study(storage: Path, cache: str, trials: int = 2) -> tuple[StudyLocation, Ledger]:
    """A study of which trial 0 is trained; `trials` is its whole budget."""
    run = tiny_run(cache)
    (storage / STUDY).mkdir(parents=True)
    location = find_location(storage, STUDY)
    ledger = Ledger.create(location.ledger_url, STUDY)
    ledger.record_run(StudyMetadata(STUDY, "bas", "BAS", "tiny", run.flat(), identity=IDENTITY, budget=trials))
    start_search(ledger, SPACE, {"loss.ssim": 0.4}, trials=trials, sampler="random", pruner="none", epochs=3, seed=42)
    train_trial(ledger, location, run)
    return location, ledger


def labels_of(masks: list[dict[str, Any]]) -> np.ndarray:
    """The masks of Transformers' pipeline as one label image (H, W) uint8; no pixel is in two masks."""
    parts = {mask["label"]: np.asarray(mask["mask"]) == 255 for mask in masks}
    assert (sum(part.astype(int) for part in parts.values()) == 1).all()
    return sum(c.label * parts[c.name] for c in CLASSES if c.name in parts).astype(np.uint8)
