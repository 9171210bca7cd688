# PYTHON_ARGCOMPLETE_OK
"""Masks and overlays of photos: `python -m fgseg.predict MODEL PHOTOS... --out DIR`."""

import argparse
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.cli import MISTAKE, Parser, told
from fgseg.config.errors import ConfigError
from fgseg.data.folder import FRAME_ENDINGS
from fgseg.trained import Trained, at_hand

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 130
QUALITY = 92
"""Of the overlays' JPEG."""


@dataclass(frozen=True)
class Photo:
    """One picture, and where what is predicted of it goes."""

    path: Path
    mask: Path
    """PNG of one channel: the label of each pixel, 0-6."""
    overlay: Path
    """JPEG: the class colours over the photo."""


def find_photos(paths: Sequence[Path], out: Path) -> list[Photo]:
    """The pictures that are named, and those below the folders that are named, in order.

    Args:
        paths: files of any ending, and folders, whose subfolders are looked through for pictures.
        out: the folder of masks; those of a folder's pictures keep their places below it.

    Raises:
        ConfigError: a path is not there, a folder has no pictures, two pictures would have the same mask, or a mask or
            an overlay would take the place of one of the pictures.
    """
    photos: dict[Path, Photo] = {}
    for path in paths:
        found = pictures_below(path, out) if path.is_dir() else [(path, Path(path.name))]
        for file, place in found:
            stem = out / place.with_suffix("")
            photo = Photo(file, stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}_overlay.jpg"))
            other = photos.setdefault(photo.mask, photo)
            if other.path.absolute() != file.absolute():
                raise ConfigError(f"{file}: would have the same mask as {other.path}; rename one, or use another --out")
    taken = {photo.path.resolve() for photo in photos.values()}
    for photo in photos.values():
        for result in (photo.mask, photo.overlay):
            if result.resolve() in taken:
                raise ConfigError(f"--out: {result} is one of the pictures, which would be lost; use another folder")
    return list(photos.values())


def pictures_below(folder: Path, out: Path) -> list[tuple[Path, Path]]:
    """The pictures below a folder, hidden ones and those below `out` left out: where each is, and its place in it."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in FRAME_ENDINGS and p.is_file())
    inside = folder.resolve() in out.resolve().parents
    found = [(p, p.relative_to(folder)) for p in files if not (inside and out.resolve() in p.resolve().parents)]
    shown = [(p, place) for p, place in found if not any(part.startswith(".") for part in place.parts)]
    if not shown:
        raise ConfigError(f"{folder}: has no pictures (*{', *'.join(FRAME_ENDINGS)}); name pictures or their folder")
    return shown


def predict(
    found: Trained,
    photos: Iterable[Photo],
    device: str = "cpu",
    scale: float = 1.0,
    tell: Callable[[Photo], None] = lambda photo: None,
) -> list[str]:
    """Write the mask and the overlay of each photo.

    Args:
        found: the model, which says for what size of frames it was trained.
        photos: what to predict.
        device: as torch names it.
        scale: see `fgseg.tiles.working_size`.
        tell: called after each photo.

    Returns:
        Why photos could not be done, one line each; all others are done.

    Raises:
        ConfigError: the model cannot be used.
        OSError: a mask cannot be written.
    """
    from fgseg.model.segformer import load_trained

    model, faults = load_trained(found, device), []
    assert found.size is not None
    for photo in photos:
        try:
            image = open_upright(photo.path)
        except ConfigError as error:
            faults.append(str(error))
        else:
            try:
                write(photo, image, labels_of(image, model, found.size, device, scale))
            except OSError as error:
                if error.errno is not None:
                    raise
                faults.append(f"{photo.path}: no overlay can be made ({error})")  # a JPEG's side has 65,500 pixels
        tell(photo)
    return faults


def open_upright(path: Path) -> "Image.Image":
    """A picture as people see it: turned as its EXIF data say, in RGB; raises ConfigError where it is none."""
    from PIL import Image

    from fgseg.data.image_files import to_rgb, upright

    return Image.fromarray(to_rgb(upright(str(path)), str(path)))


def labels_of(
    image: "Image.Image", model: "nn.Module", frame: tuple[int, int], device: str, scale: float
) -> "np.ndarray":
    """The labels of a picture at its own size: (H, W) uint8, 0-6."""
    import numpy as np
    import torch
    from PIL import Image

    from fgseg.tiles import labels_at, tiled_logits, working_size

    size = (image.height, image.width)
    height, width = working_size(size, frame, scale)
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    logits = tiled_logits(model, torch.from_numpy(resized).permute(2, 0, 1), frame, device)
    return labels_at(logits, size).numpy()


def write(photo: Photo, image: "Image.Image", labels: "np.ndarray") -> None:
    """Write the overlay, then the mask, each whole or not at all."""
    import numpy as np
    from PIL import Image

    from fgseg.figures import overlay

    photo.mask.parent.mkdir(parents=True, exist_ok=True)
    save(Image.fromarray(overlay(np.asarray(image), labels)), photo.overlay)
    save(Image.fromarray(labels), photo.mask)


def save(image: "Image.Image", path: Path) -> None:
    """Write an image beside its name, then rename it."""
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        image.save(part, quality=QUALITY)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
        print(f"error: {told(error)}", file=sys.stderr)
        return INCOMPLETE


def run(options: argparse.Namespace) -> int:
    """Do what the options say; raises ConfigError."""
    if not options.scale > 0:
        raise ConfigError(f"--scale: got {options.scale:g}, must be above 0; 1 is the scale of training")
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out: {options.out} is a file; name a folder")
    photos = find_photos(options.photos, options.out)
    left = [p for p in photos if options.overwrite or not (p.mask.exists() and p.overlay.exists())]
    with at_hand(options.model) as found:
        if found.size is None:
            raise ConfigError(f"MODEL: {options.model} does not say its size; add a preprocessor_config.json with one")
        faults = work(found, left, options)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    kept = f", {len(photos) - len(left)} there already (--overwrite)" if len(left) < len(photos) else ""
    print(f"{len(left) - len(faults)} of {len(photos)} pictures done{kept}; masks and overlays in {options.out}")
    return INCOMPLETE if faults else DONE


def work(found: Trained, photos: Sequence[Photo], options: argparse.Namespace) -> list[str]:
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
