"""The loop over epochs, resumed from the newest checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.checkpoints.trial_files import save_model_files
from fgseg.config.loading import check_processes
from fgseg.config.settings import RunConfig
from fgseg.data import FrameSet
from fgseg.results import EpochResult
from fgseg.storage.store import open_store
from fgseg.training.imports import import_training

if TYPE_CHECKING:
    from fgseg.checkpoints.checkpoint import Checkpoints
    from fgseg.training.trainer import TrainingState


def train(
    run: RunConfig,
    folder: str | Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    attempt: int | None = None,
    on_resume: Callable[[list[EpochResult]], None] = lambda history: None,
) -> list[EpochResult]:
    """Train a model to its last epoch, resuming from the newest valid checkpoint in `folder`.

    A call that resumes gives the same epochs as an uninterrupted call; on the CPU, with the same number of threads, to
    the last bit.

    Where a torch.distributed process group is initialised, all its processes call this and share every batch.  Only
    the main process writes checkpoints and calls back.  Checkpoints do not depend on the number of processes.

    Args:
        run: all settings.
        folder: receives the checkpoints, and pictures of a few validation frames: a path, or the address of
            a bucket (see fgseg/storage/store.py).
        on_epoch: called with each newly finished epoch, after its checkpoint is written.
        attempt: number of this start of the trial; by default one more than the highest in the folder.
        on_resume: called once with the epochs of the checkpoint, where there is one.

    Returns:
        Every epoch from the first, including those of earlier calls.

    Raises:
        ConfigError: wrong settings, data, weights or address, or a batch size that the number of processes does not
            divide.
        DivergedError: the loss became NaN or infinite; names epoch and term.
        SupersededError: a higher attempt has claimed the folder.
    """
    import_training()  # here, since it takes seconds: mistakes come first
    from accelerate.utils import broadcast_object_list

    from fgseg.checkpoints.checkpoint import Checkpoints, shared_checkpoint
    from fgseg.checkpoints.manifest import newest_attempt
    from fgseg.data import load_splits
    from fgseg.distributed import current_world
    from fgseg.model.segformer import architecture
    from fgseg.training.inherited_head import inherited_rows
    from fgseg.training.trainer import build_training_state, load_checkpoint

    world = current_world()
    check_processes(run, world.world_size)
    store = open_store(folder)
    checkpoints = Checkpoints(store, attempt or newest_attempt(store) + 1) if world.is_main else None
    attempt = broadcast_object_list([checkpoints.attempt if checkpoints else 0])[0]
    checkpoint = shared_checkpoint(store, world)
    history = list(checkpoint.manifest.history) if checkpoint else []
    if history and checkpoints:
        on_resume(list(history))
    if len(history) >= run.train.epochs:
        return history
    splits = load_splits(run.data, ("train", "val"), components=run.copy_paste.needs_components)
    rows = inherited_rows(run, splits["train"]) if checkpoint is None and world.is_main else None
    rows = broadcast_object_list([rows])[0]
    state = build_training_state(run, len(splits["train"]), rows)
    if checkpoints:
        save_model_files(store, run, architecture(state.model))
    if checkpoint:
        load_checkpoint(state, checkpoint)
    train_remaining_epochs(state, splits, history, checkpoints=checkpoints, on_epoch=on_epoch, attempt=attempt)
    return history


def train_remaining_epochs(
    state: "TrainingState",
    splits: dict[str, FrameSet],
    history: list[EpochResult],
    *,
    checkpoints: "Checkpoints | None",
    on_epoch: Callable[[EpochResult], None],
    attempt: int,
) -> None:
    """Train up to the last epoch, appending to `history`; saves and reports each epoch where `checkpoints` is given."""
    from fgseg.training.epoch import run_epoch
    from fgseg.visual.overlays import save_overlays

    run = state.run
    while len(history) < run.train.epochs:
        history.append(run_epoch(state, splits, len(history) + 1, attempt))
        if checkpoints:
            save_overlays(  # before the checkpoint, after which nothing of the epoch is done again
                checkpoints.store,
                state.evaluated,
                splits["val"],
                run.label_set(),
                epoch=len(history),
                epochs=run.train.epochs,
                window=run.data.window,
            )
            checkpoints.save(*state.state_dict(), history, run.train.select)
            on_epoch(history[-1])
