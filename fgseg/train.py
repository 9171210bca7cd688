# PYTHON_ARGCOMPLETE_OK
"""Train one model, continuing where an earlier call stopped; also `python -m fgseg.train`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from fgseg.checkpoints.trial_files import SETTINGS
from fgseg.cli import MISTAKE, Parser
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, check_processes, parse_assignments, read_layer
from fgseg.config.settings import RunConfig
from fgseg.data import check as check_data
from fgseg.labels import FOREGROUND
from fgseg.model.pretrained import check_weights
from fgseg.results import DivergedError, EpochResult, SupersededError, format_iou
from fgseg.storage.store import absolute, check_store, open_store
from fgseg.training.loop import train


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
        from fgseg.distributed import joined_world  # imports torch

        with joined_world():
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
    classes = "  ".join(f"{c.name} {format_iou(result.iou[c.key])}" for c in FOREGROUND)
    left = (epochs - result.epoch) * result.seconds / 60
    return (
        f"epoch {result.epoch}/{epochs}  mIoU {result.miou:.4f}  ({classes})  loss {result.loss:.4f}  "
        f"{result.images_per_s:.1f} images/s  {left:.0f} min left"
    )


if __name__ == "__main__":
    sys.exit(main())
