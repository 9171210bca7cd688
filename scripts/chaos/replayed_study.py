"""A small study whose trials are computed from a formula, for `crash_points` and `simulate`.

    plan = small_plan(storage)                        3 trials of 3 epochs, of which two may run at once
    for report in replayed_trial(job): ...            writes a trial's files, yields a report after each epoch
    results(ledger) == results(other_ledger)          equal for every study of this plan, however often it crashed

The weights of an epoch are computed from those of the previous one, so that a trial that resumes from a wrong
checkpoint gives other results.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fgseg.checkpoints.trial_files import save_model_files
from fgseg.checkpoints.untrained_result import UNTRAINED, UntrainedResult, read_untrained
from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult
from fgseg.storage.store import Store, open_store
from fgseg.visual.label_images import encode_png
from fgseg.visual.overlays import epoch_overlays_name, overlay_name, pack
from search.execution.messages import TrialJob, TrialReport
from search.ledger.study_reader import StudyReader
from search.study.plan import Plan, make_plan

TRIALS, EPOCHS, CONCURRENT = 3, 3, 2
"""Budget of the study, length of a trial, trials at once."""
STUDY = "small"
DATA = "f00d"
"""Stands for the fingerprint of the data, which no trial reads."""
BEGAN = 1e9
"""Unix seconds of the first epoch; the times of epochs are computed too."""
OVERLAY = encode_png(np.zeros((2, 2, 3), np.uint8))


def small_plan(
    storage: Path, trials: int = TRIALS, epochs: int = EPOCHS, lr: float | None = None, **search: Any
) -> Plan:
    """Return the plan of the study; `search` are settings of `SearchConfig`.

    The learning rate `lr` is by default that of the quickstart.

    The sampler is random, so that the points do not depend on the order in which concurrent trials report.
    """
    flags = {"trials": trials, "sampler": "random", "storage": str(storage), "keep_checkpoints": 1} | search
    settings = {"train.epochs": epochs} | ({} if lr is None else {"train.lr": lr})
    return make_plan("bas", "configs/quickstart.yaml", settings, flags, STUDY)


def replayed_trial(job: TrialJob) -> Iterator[TrialReport]:
    """Write the files that training the job writes, in the same order; yields the report after each epoch.

    The first trial writes the result of the untrained checkpoint.  Overlays are written after the last epoch only, and
    of one frame.

    A trial with a checkpoint continues from it, and yields the epochs of the checkpoint first.

    Raises:
        SupersededError: a later attempt has claimed the trial's folder.
    """
    import torch

    from fgseg.checkpoints.checkpoint import Checkpoints, newest_checkpoint

    run, store = build([Layer(f"trial {job.number}", job.settings)]), open_store(job.folder)
    assert job.study_folder is not None
    save_untrained(open_store(job.study_folder), run)
    checkpoints, newest = Checkpoints(store, job.attempt), newest_checkpoint(store)
    report = TrialReport(job.number, job.attempt, list(newest.manifest.history) if newest else [])
    weight = newest.model["weight"].item() if newest else 0.5
    if report.epochs:
        yield report
    if len(report.epochs) < run.train.epochs:
        save_model_files(store, run, {"model_type": "segformer"})
    for number in range(len(report.epochs) + 1, run.train.epochs + 1):
        weight = next_weight(weight, run)
        report.epochs.append(replayed_epoch(job, run, number, weight))
        if number == run.train.epochs:
            save_overlays(store, number)
        weights = {"weight": torch.tensor([weight], dtype=torch.float64)}
        checkpoints.save(weights, {"epoch": number}, report.epochs, run.train.select)
        yield report


def next_weight(weight: float, run: RunConfig) -> float:
    """Return the weight after another epoch, in [0, 1): a chaotic function of the weight and of settings."""
    settings = run.loss.ssim + run.loss.soft_iou + run.train.seed / 7 + 1000 * run.train.lr
    return (weight * 3.7 * (1 - weight) + settings) % 1.0


def replayed_epoch(job: TrialJob, run: RunConfig, number: int, weight: float) -> EpochResult:
    """Return the result of an epoch with this weight."""
    classes = run.label_set()
    miou = 0.3 + 0.4 * weight
    return EpochResult(
        epoch=number,
        miou=miou,
        iou={c.key: math.nan for c in classes.foreground[:-1]} | {classes.foreground[-1].key: miou},  # few metrics
        confusion=[[number] * classes.num_classes] * classes.num_classes,
        loss=1 - weight,
        terms={"ssim": weight},
        images_per_s=20.0,
        seconds=10.0,
        wall_time=BEGAN + 1000 * job.number + 10 * number,
        attempt=job.attempt,
    )


def save_untrained(store: Store, run: RunConfig) -> None:
    """Write the result of the untrained checkpoint into the study's folder, unless the folder has it."""
    if read_untrained(store) is None:
        classes = run.label_set()
        iou = {c.key: 0.2 for c in classes.foreground}
        confusion = [[[1] * classes.num_classes] * classes.num_classes]
        ended, miou = BEGAN + 1000 * run.train.lr, 0.2 + run.train.lr
        result = UntrainedResult("val", DATA, ended, miou, iou, confusion, boundary=[])
        store.put(UNTRAINED, json.dumps(result.to_json()).encode())


def save_overlays(store: Store, epoch: int) -> None:
    """Write a tiny picture as the overlay of the last epoch, and as the one that shows photo, truth and prediction."""
    store.put(epoch_overlays_name(epoch), pack({"frame": OVERLAY}))
    store.put(overlay_name(1, "frame"), OVERLAY)


def results(ledger: StudyReader) -> list[Any]:
    """Return what every run of the plan must find: points, ends and epochs of all trials, and the best trial."""
    best = ledger.best()
    trials = [
        (r.number, r.params, r.state.value, r.value, r.selected, [(e.epoch, e.miou, e.loss) for e in r.epochs])
        for r in ledger.trials()
    ]
    return [*trials, best and best.number]
