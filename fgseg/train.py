# PYTHON_ARGCOMPLETE_OK
"""Train one model, continuing where an earlier call stopped; also `python -m fgseg.train`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fgseg.checkpoints.trial_files import SETTINGS, describe_trial
from fgseg.cli import MISTAKE, Parser
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, check_processes, parse_assignments, read_layer
from fgseg.config.settings import RunConfig
from fgseg.data import check as check_data
from fgseg.labels import FOREGROUND
from fgseg.model.pretrained import check_weights
from fgseg.results import DivergedError, EpochResult, SupersededError, show
from fgseg.storage.store import absolute, check_store, open_store


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
    from fgseg.learner import build_learner, restore, train_epoch
    from fgseg.model.segformer import architecture
    from fgseg.overlays import put_overlays

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 the loss diverged or the disk fails, 2 the user's mistake.

    Started by `torchrun` or `accelerate launch`, its processes train one model and the first one speaks for all.
    """
    first = os.environ.get("RANK", "0") == "0"
    say = print if first else silent
    try:
        options = parse(arguments)
        layers = [read_layer(find_file(options.config), skip="search"), Layer("--set", parse_assignments(options.set))]
        run = build(layers)
        check_data(run.data)
        check_weights(run.model.name)
        check_processes(run, int(os.environ.get("WORLD_SIZE", "1")))
        out = absolute(options.out)
        if first:
            check_settings(run, out)
        from fgseg.distributed import joined_processes  # imports torch

        with joined_processes():
            history = train(run, out, lambda result: say(line(result, run.train.epochs), flush=True))
    except ConfigError as error:
        say(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except (DivergedError, SupersededError, OSError) as error:
        say(f"error: {error}", file=sys.stderr)
        return 1
    say(f"{len(history)} epochs done; checkpoints in {options.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.train", description="Train one model.")
    parser.add_argument("--config", required=True, help="settings in YAML; its section `search` is not read")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (repeatable)")
    parser.add_argument("--out", required=True, help="folder or s3:// address for checkpoints; continued if it exists")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


def silent(*values: object, **options: object) -> None:
    """Print for a process that another one speaks for."""


def check_settings(run: RunConfig, folder: str) -> None:
    """Hold the settings against those with which the folder was begun; leaves no trace.

    Raises:
        ConfigError: the folder was begun with other settings, or cannot be read.
    """
    check_store(folder, "--out")
    store = open_store(folder)
    try:
        before, now = json.loads(store.get(SETTINGS)) if SETTINGS in store.list() else run.flat(), run.flat()
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be read ({error.strerror or error}); name another folder") from None
    changes = [f"{k}: {before.get(k)!r} there, {now[k]!r} now" for k in now if before.get(k) != now[k]]
    if changes:
        raise ConfigError(f"--out: {folder} was begun with other settings ({'; '.join(changes)}); name another folder")


def line(result: EpochResult, epochs: int) -> str:
    """One epoch in one line: mIoU, the IoU of every class, loss, speed, minutes left."""
    classes = "  ".join(f"{c.name} {show(result.iou[c.key])}" for c in FOREGROUND)
    left = (epochs - result.epoch) * result.seconds / 60
    return (
        f"epoch {result.epoch}/{epochs}  mIoU {result.miou:.4f}  ({classes})  loss {result.loss:.4f}  "
        f"{result.images_per_s:.1f} images/s  {left:.0f} min left"
    )


if __name__ == "__main__":
    sys.exit(main())
