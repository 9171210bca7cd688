"""The loop over epochs: train a model, continuing where an earlier call stopped."""

from collections.abc import Callable
from pathlib import Path

from fgseg.checkpoints.trial_files import save_model_files
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
    from fgseg.distributed import current_world
    from fgseg.model.segformer import architecture
    from fgseg.training.trainer import build_training_state, load_checkpoint, run_epoch
    from fgseg.visual.overlays import save_overlays

    processes = current_world()
    check_processes(run, processes.world_size)
    store = open_store(folder)
    checkpoints = Checkpoints(store, attempt or newest_attempt(store) + 1) if processes.is_main else None
    attempt = processes.broadcast_object(checkpoints.attempt if checkpoints else 0)
    checkpoint = shared_checkpoint(store, processes)
    history = list(checkpoint.manifest.history) if checkpoint else []
    if history and checkpoints:
        on_resume(list(history))
    if len(history) >= run.train.epochs:
        return history
    splits = load_splits(run.data, ("train", "val"))
    state = build_training_state(run, len(splits["train"]), processes)
    if checkpoints:
        save_model_files(store, run, architecture(state.model))
    if checkpoint:
        load_checkpoint(state, checkpoint)
    while len(history) < run.train.epochs:
        history.append(run_epoch(state, splits, len(history) + 1, attempt))
        if checkpoints:
            if len(history) == run.train.epochs:  # before the checkpoint that says that nothing is left to be done
                with state.accelerator.autocast():
                    save_overlays(store, state.model, splits["val"])
            checkpoints.save(*state.state_dict(), history, run.train.select)
            on_epoch(history[-1])
    return history
