# PYTHON_ARGCOMPLETE_OK
"""List the ids or colours of label images with their pixel share, and write a labels.yaml to complete.

`python -m fgseg.labels FOLDER --out FOLDER/labels.yaml`; without --out the file is printed, and the table goes to
standard error.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgseg.cli import DONE, Parser, run_command
from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.image_files import decode, scan, to_ids, to_rgb
from fgseg.data.labels_file import codes_of, colour_of
from fgseg.labels import LabelSet
from fgseg.tables import Row, Table

ENDINGS = (".png", ".bmp", ".tif", ".tiff")
"""Endings of label images; a JPEG changes ids and colours."""


@dataclass(frozen=True)
class Found:
    """The ids or colours of some label images."""

    folder: Path
    images: int
    in_colours: bool
    pixels: Mapping[int, int]
    """Number of pixels by id, or by the code of a colour; the most frequent first."""
    frames: Mapping[int, int]
    """Number of images that hold the id or colour."""

    def shown(self, value: int) -> str:
        """Return an id, or a colour as `128, 0, 0`, as labels.yaml takes it."""
        return ", ".join(map(str, colour_of(value))) if self.in_colours else str(value)

    def share(self, value: int) -> str:
        """Return the share of the pixels in percent."""
        return f"{100 * self.pixels[value] / sum(self.pixels.values()):.3f} %"


def count_values(folder: Path, limit: int) -> Found:
    """Count the ids or colours of the label images below a folder.

    Args:
        folder: of a data set with `labels/`, or of label images.
        limit: images to read, at most; they are evenly spaced in the order of their names.

    Raises:
        ConfigError: there are no label images, one cannot be decoded, or some have colours and others ids.
    """
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    if labels == folder and (folder / "images").is_dir():
        raise ConfigError(f"FOLDER: {folder} has images/ and no labels/; name the folder of the label images")
    files = [file.path for _, file in sorted(scan(labels, ENDINGS).items())]
    if not files:
        raise ConfigError(f"FOLDER: {labels} has no label images (*{', *'.join(ENDINGS)}); name their folder")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)]
    in_colours = len(decode(chosen[0]).getbands()) > 1
    pixels, frames = Counter[int](), Counter[int]()
    for path in chosen:
        image = decode(path)
        values, counts = np.unique(
            codes_of(to_rgb(image, path)) if in_colours else to_ids(image, path), return_counts=True
        )
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        frames.update(values.tolist())
    return Found(labels, len(chosen), in_colours, dict(pixels.most_common()), frames)


def values_table(found: Found) -> Table:
    """Return the table of ids or colours."""
    noun = "colour" if found.in_colours else "id"
    rows = [Row([found.shown(v), found.share(v), str(found.frames[v])]) for v in found.pixels]
    return Table("", [noun, "pixels", "images"], rows)


def template(found: Found, classes: LabelSet) -> str:
    """Return a labels.yaml in which the class of each id or colour is missing."""
    keys = ", ".join(c.key for c in classes.classes)
    ordered = sorted(found.pixels)
    return "\n".join(
        [
            f"# Write a class after each: {keys}, or void (not trained, not counted).",
            f"# Delete the lines of {classes.rest_key}; `classes:` may define other classes, see",
            "# configs/labels/README.md.",
            f"rest: {classes.rest_key}",
            "colours:" if found.in_colours else "ids:",
            *(f"  {found.shown(value)}:  # {found.share(value)}" for value in ordered),
        ]
    )


def list_values(options: argparse.Namespace) -> int:
    """Print the table and the file; raises ConfigError."""
    if options.images < 1:
        raise ConfigError(f"--images: got {options.images}, must be at least 1")
    from rich.console import Console

    if options.out and options.out.exists():
        raise ConfigError(f"--out: {options.out} exists, and may be completed already; name another file")
    classes = DataConfig(labels=options.labels).label_set()
    found = count_values(options.folder, options.images)
    console = Console(stderr=True)
    console.print(f"{found.folder}: {found.images} label images", soft_wrap=True, highlight=False, markup=False)
    console.print(values_table(found).to_rich())
    text = template(found, classes)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(f"{text}\n", encoding="utf-8")
        console.print(f"{options.out} is written, to be completed", soft_wrap=True, highlight=False, markup=False)
    return DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, list_values, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    default = DataConfig.model_fields["labels"].default
    parser = Parser(prog="python -m fgseg.labels", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="data set with labels/, or folder of label images")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="images to read at most (default: 200)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write; must not exist (default: print it)")
    parser.add_argument("--labels", default=default, metavar="SET", help=f"label set to name (default: {default})")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
