# PYTHON_ARGCOMPLETE_OK
"""Predict masks and overlays of photos: `python -m fgseg.predict MODEL PHOTOS... --out DIR`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fgseg.cli import DONE, FAULT, Parser, add_model_options, run_command
from fgseg.config.errors import ConfigError
from fgseg.config.settings import Fit
from fgseg.inference.photos import Photo, find_photos, predict
from fgseg.inference.trained_model import TrainedModel, open_trained_model
from fgseg.storage.store import create_folder

LARGEST_SCALE = 8
"""Largest value of --scale: memory and time grow with its square."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`), FAULT also if a photo could not be predicted."""
    text = "interrupted; run the same command again to predict the remaining photos"
    return run_command(parse, predict_photos, arguments, interrupted=text)


def predict_photos(options: argparse.Namespace) -> int:
    """Write the masks and overlays that are missing, and print how many; raises ConfigError, OSError."""
    if not 0 < options.scale <= LARGEST_SCALE:
        raise ConfigError(
            f"--scale: got {options.scale:g}, must be above 0 and at most {LARGEST_SCALE}; 1 is the scale of training"
        )
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out: {options.out} is a file; name a folder")
    photos = find_photos(options.photos, options.out)
    left = [p for p in photos if options.overwrite or not (p.mask.exists() and p.overlay.exists())]
    with open_trained_model(options.model) as stored:
        if stored.geometry is None:
            raise ConfigError(f"MODEL: {options.model} does not say its size; add a preprocessor_config.json with one")
        create_folder(options.out, "--out")
        found = replace(stored, geometry=replace(stored.geometry, fit=options.fit or stored.geometry.fit))
        faults = predict_with_progress(found, left, options) if left else []
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    kept = f", {len(photos) - len(left)} there already (--overwrite)" if len(left) < len(photos) else ""
    print(f"{len(left) - len(faults)} of {len(photos)} pictures done{kept}; masks and overlays in {options.out}")
    return FAULT if faults else DONE


def predict_with_progress(found: TrainedModel, photos: Sequence[Photo], options: argparse.Namespace) -> list[str]:
    """Predict the photos, with a progress bar on a terminal; returns one line for each photo that failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fgseg.devices import find_device  # imports torch, which takes seconds: mistakes are reported before

    device, console = find_device(options.device), Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=len(photos))

        def on_photo(photo: Photo) -> None:
            bar.update(task, advance=1, description=photo.path.name)

        return predict(found, photos, device, options.scale, on_photo)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.predict", description=__doc__)
    add_model_options(parser)
    parser.add_argument("photos", metavar="PHOTOS", nargs="+", type=Path, help="photos, and folders of photos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of masks and overlays")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="factor on the size used in training (default: 1)"
    )
    parser.add_argument(
        "--fit",
        choices=get_args(Fit),
        help="for photos of another shape than the training frames: stretch them; keep their proportions and pad; or "
        "keep them and slide a window over the photo (crop) (default: as in training)",
    )
    parser.add_argument("--overwrite", action="store_true", help="predict photos again that have a mask")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
