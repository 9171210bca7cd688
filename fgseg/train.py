# PYTHON_ARGCOMPLETE_OK
"""Train one model, resuming where an earlier call stopped; also `python -m fgseg.train`."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fgseg.checkpoints.trial_files import SETTINGS
from fgseg.cli import DONE, FAULT, INTERRUPTED, MISTAKE, Parser, add_config_options, format_os_error
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, check_processes, parse_assignments, read_layer
from fgseg.config.settings import RunConfig, with_defaults
from fgseg.data import check as check_data
from fgseg.data import data_notes, load_splits
from fgseg.labels import display_name
from fgseg.model.class_names import new_head_note
from fgseg.model.pretrained import check_weights
from fgseg.results import DivergedError, EpochResult, SupersededError, format_iou
from fgseg.storage.store import absolute, check_store, create_folder, is_local, open_store
from fgseg.training.loop import train

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Variables of the launchers that hold a process's rank; the first that is set counts, as in Accelerate."""
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables of MPI's launchers that hold the number of processes."""
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variables by which `accelerate launch` selects a library that cuts a model into parts, and the library's name."""
LAUNCH = "start with torchrun, or with accelerate launch --config_file configs/accelerate.yaml"
ALONE = "set WORLD_SIZE=1 to train in a single process"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see `fgseg.cli`).

    The processes of `torchrun` or `accelerate launch` train one model.  Only the main process prints, but for errors of
    files and disks, which another process may meet alone.
    """
    is_main = is_main_process(os.environ)
    say = print if is_main else silent
    try:
        options = parse(arguments)
        world_size = launched_processes(os.environ)
        layers = [read_layer(find_file(options.config), skip="search"), Layer("--set", parse_assignments(options.set))]
        run = build(layers)
        check_data(run.data)
        check_weights(run.model.name)
        check_processes(run, world_size)
        out = absolute(options.out)
        if is_main:
            check_settings(run, out)
        if note := new_head_note(run.model, run.label_set()):
            say(note)
        from fgseg.devices import check_gpu  # imports torch
        from fgseg.distributed import joined_world

        for note in data_notes(run.data, load_splits(run.data, ("train", "val"))):
            say(note, flush=True)
        check_gpu(run)
        if is_main and is_local(out):
            create_folder(Path(out), "--out")
        with joined_world():
            history = train(run, out, lambda result: say(line(result, run.train.epochs), flush=True))
    except ConfigError as error:
        say(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except (DivergedError, SupersededError) as error:
        say(f"error: {error}", file=sys.stderr)
        return FAULT
    except OSError as error:
        print(f"error: {format_os_error(error)}", file=sys.stderr)
        return FAULT
    except KeyboardInterrupt:
        say("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    say(f"{len(history)} epochs done; checkpoints in {options.out}")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.train", description="Train one model.")
    add_config_options(parser, used="; its section `search` is not read")
    parser.add_argument("--out", required=True, help="folder or s3:// address for checkpoints; continued if it exists")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


def is_main_process(environment: Mapping[str, str]) -> bool:
    """Return whether this process prints; also known where `launched_processes` refuses the variables.

    A rank counts only beside a number of processes: a shell in a SLURM job may set one for a single process.
    """
    sizes = ("WORLD_SIZE",) if "WORLD_SIZE" in environment else MPI_SIZES
    rank = next((environment[name] for name in RANKS if name in environment), "0")
    return rank == "0" or all(environment.get(name, "1") == "1" for name in sizes)


def launched_processes(environment: Mapping[str, str]) -> int:
    """Return the number of processes that a launcher's variables describe; 1 without a launcher.

    Accelerate alone would train one model in each process where the variables do not describe a group.

    Raises:
        ConfigError: the processes cannot train one model.
    """
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if not environment.get(name, "0").isdecimal():
            raise ConfigError(f"{name}: got {environment[name]!r}, must be a whole number; {LAUNCH}")
    for name, library in UNSUPPORTED.items():
        if environment.get(name, "false").lower() == "true":
            raise ConfigError(f"{library}: the processes cannot train one model this way; {LAUNCH}")
    if "WORLD_SIZE" not in environment:
        for name in MPI_SIZES:
            if environment.get(name, "1") != "1":
                raise ConfigError(
                    f"{name} is {environment[name]}, but WORLD_SIZE is not set: each MPI process would train a model "
                    f"of its own; {LAUNCH}; or {ALONE}"
                )
        if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
            raise ConfigError(f"accelerate launch was to start several processes and started one; {LAUNCH}; or {ALONE}")
    world_size = int(environment.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if world_size > 1 and missing:
        raise ConfigError(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set; {LAUNCH}")
    if "LOCAL_RANK" in environment and missing:  # Accelerate joins a group also for a single process
        raise ConfigError(f"LOCAL_RANK is set, but {', '.join(missing)} is not; {LAUNCH}; or unset LOCAL_RANK")
    if "WORLD_SIZE" not in environment:
        return 1
    if int(environment.get("RANK", "0")) >= max(1, world_size):
        raise ConfigError(f"RANK: got {environment['RANK']}, must be below WORLD_SIZE, which is {world_size}; {LAUNCH}")
    return max(1, world_size)


def silent(*values: object, **options: object) -> None:
    """Take the arguments of `print`, and print nothing."""


def check_settings(run: RunConfig, folder: str) -> None:
    """Compare the settings with those stored in the folder; writes nothing.

    Raises:
        ConfigError: the folder was begun with other settings, or cannot be read.
    """
    check_store(folder, "--out")
    store = open_store(folder)
    try:
        now = run.flat()
        before = with_defaults(json.loads(store.get(SETTINGS))) if SETTINGS in store.list() else now
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be read ({error.strerror or error}); name another folder") from None
    changes = [f"{k}: {before.get(k)!r} there, {now[k]!r} now" for k in now if before.get(k) != now[k]]
    if changes:
        raise ConfigError(f"--out: {folder} was begun with other settings ({'; '.join(changes)}); name another folder")


def line(result: EpochResult, epochs: int) -> str:
    """Format one epoch in one line: mIoU, the IoU of every class, loss, images/s, minutes left."""
    classes = "  ".join(f"{display_name(key)} {format_iou(value)}" for key, value in result.iou.items())
    left = (epochs - result.epoch) * result.seconds / 60
    return (
        f"epoch {result.epoch}/{epochs}  mIoU {result.miou:.4f}  ({classes})  loss {result.loss:.4f}  "
        f"{result.images_per_s:.1f} images/s  {left:.0f} min left"
    )


if __name__ == "__main__":
    sys.exit(main())
