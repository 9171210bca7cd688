# PYTHON_ARGCOMPLETE_OK
"""Masks and overlays of photos: `python -m fgseg.predict MODEL PHOTOS... --out DIR`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fgseg.cli import MISTAKE, Parser, format_os_error
from fgseg.config.errors import ConfigError
from fgseg.inference.photos import Photo, find_photos, predict
from fgseg.inference.trained_model import TrainedModel, open_trained_model

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 all done, 1 some pictures could not be done, 2 the user's mistake, 130 interrupted.
    """
    try:
        return run(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the pictures that are left", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: {format_os_error(error)}", file=sys.stderr)
        return INCOMPLETE


def run(options: argparse.Namespace) -> int:
    """Do what the options say; raises ConfigError."""
    if not options.scale > 0:
        raise ConfigError(f"--scale: got {options.scale:g}, must be above 0; 1 is the scale of training")
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out: {options.out} is a file; name a folder")
    photos = find_photos(options.photos, options.out)
    left = [p for p in photos if options.overwrite or not (p.mask.exists() and p.overlay.exists())]
    with open_trained_model(options.model) as found:
        if found.size is None:
            raise ConfigError(f"MODEL: {options.model} does not say its size; add a preprocessor_config.json with one")
        faults = work(found, left, options)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    kept = f", {len(photos) - len(left)} there already (--overwrite)" if len(left) < len(photos) else ""
    print(f"{len(left) - len(faults)} of {len(photos)} pictures done{kept}; masks and overlays in {options.out}")
    return INCOMPLETE if faults else DONE


def work(found: TrainedModel, photos: Sequence[Photo], options: argparse.Namespace) -> list[str]:
    """Predict, where there is anything to do; returns why photos could not be done."""
    if not photos:
        return []
    from fgseg.devices import find_device  # torch takes seconds to import: mistakes come first

    device = find_device(options.device)
    return show(photos, lambda tell: predict(found, photos, device, options.scale, tell))


def show(photos: Sequence[Photo], carry_out: Callable[[Callable[[Photo], None]], list[str]]) -> list[str]:
    """Do the work under a progress bar, which is shown on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=len(photos))
        return carry_out(lambda photo: bar.update(task, advance=1, description=photo.path.name))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.predict", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a folder, exported or of checkpoints (or s3://), or a hub id")
    parser.add_argument("photos", metavar="PHOTOS", nargs="+", type=Path, help="pictures, and folders of pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of masks and overlays")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the size at which the model was trained (default: 1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="make masks anew that are there already")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
