"""The loop over epochs: train a model, continuing where an earlier call stopped."""

from collections.abc import Callable
from pathlib import Path

from fgseg.checkpoints.trial_files import describe_trial
from fgseg.config.loading import check_processes
from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult
from fgseg.storage.store import open_store


def train(
    run: RunConfig,
    folder: str | Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    attempt: int | None = None,
    on_resume: Callable[[list[EpochResult]], None] = lambda history: None,
) -> list[EpochResult]:
    """Train a model to its last epoch, continuing from the newest valid checkpoint in `folder`.

    Interrupted after any epoch and called again, it gives the epochs of an uninterrupted call; on the CPU, with the
    same number of threads, to the last bit.

    Where a torch.distributed process group is initialised, all its processes call this and share every batch.  Only the
    first of them writes checkpoints and calls back.  Checkpoints do not depend on the number of processes.

    Args:
        run: all settings.
        folder: receives the checkpoints, and pictures of a few validation frames at the end: a path, or the address of
            a bucket (see fgseg/storage/store.py).
        on_epoch: called with each newly finished epoch, after its checkpoint is on disk.
        attempt: number of this start of the trial; by default one more than any that worked in the folder.
        on_resume: called once with the epochs that the checkpoint holds, where there is one.

    Returns:
        Every epoch from the first, those of earlier calls included.

    Raises:
        ConfigError: settings, data, weights or an address that do not hold, or a batch that does not divide among the
            processes.
        DivergedError: the loss became NaN or infinite; it names epoch and term.
        SupersededError: a higher attempt works in the folder.
    """
    from fgseg.checkpoints.checkpoint import (  # torch takes seconds to import: mistakes come first
        Checkpoints,
        shared_checkpoint,
    )
    from fgseg.checkpoints.manifest import newest_attempt
    from fgseg.data import load_splits
    from fgseg.distributed import current_processes
    from fgseg.model.segformer import architecture
    from fgseg.training.trainer import build_learner, restore, train_epoch
    from fgseg.visual.overlays import put_overlays

    processes = current_processes()
    check_processes(run, processes.size)
    store = open_store(folder)
    checkpoints = Checkpoints(store, attempt or newest_attempt(store) + 1) if processes.first else None
    attempt = processes.told_by_first(checkpoints.attempt if checkpoints else 0)
    checkpoint = shared_checkpoint(store, processes)
    history = list(checkpoint.manifest.history) if checkpoint else []
    if history and checkpoints:
        on_resume(list(history))
    if len(history) >= run.train.epochs:
        return history
    splits = load_splits(run.data, ("train", "val"))
    learner = build_learner(run, len(splits["train"]), processes)
    if checkpoints:
        describe_trial(store, run, architecture(learner.model))
    if checkpoint:
        restore(learner, checkpoint)
    while len(history) < run.train.epochs:
        history.append(train_epoch(learner, splits, len(history) + 1, attempt))
        if checkpoints:
            if len(history) == run.train.epochs:  # before the checkpoint that says that nothing is left to be done
                with learner.accelerator.autocast():
                    put_overlays(store, learner.model, splits["val"])
            checkpoints.save(*learner.snapshot(), history, run.train.select)
            on_epoch(history[-1])
    return history
