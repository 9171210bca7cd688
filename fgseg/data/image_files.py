"""Image files: finding pairs of frame and label below two folders, and decoding them with errors that name the file."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels in [0, 1], by channel."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""
DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for a file that is truncated, damaged, or no image."""


class File(NamedTuple):
    """A file and what tells whether it has changed."""

    path: str
    size: int
    mtime_ns: int


def root_folder(cfg: DataConfig) -> Path:
    """The folder in data.root; raises ConfigError where there is none."""
    if cfg.root is None:
        raise ConfigError(f"data.root: got nothing, the reader {cfg.reader} needs a folder; add --set data.root=DIR")
    try:
        root = Path(cfg.root).expanduser()
        there, folder = root.exists(), root.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"data.root: {cfg.root!r} cannot be looked at ({error}); name another folder") from None
    if not folder:
        problem = "is not a folder" if there else "does not exist"
        raise ConfigError(f"data.root: {cfg.root} {problem}; name the folder of the data set")
    return root


def scan(folder: Path, endings: tuple[str, ...]) -> dict[str, File]:
    """Find the files below a folder whose names end in one of `endings`, hidden ones left out.

    Returns:
        Each file under its path relative to the folder, without the ending; nothing where the folder does not exist.

    Raises:
        ConfigError: two files differ in their ending only, or a folder cannot be read.
    """
    found: dict[str, File] = {}
    try:
        for prefix, entry in walk(str(folder)):
            ending = next((e for e in endings if entry.name.lower().endswith(e.lower())), None)
            if ending is None:
                continue
            name = prefix + entry.name[: -len(ending)]
            if name in found:
                raise ConfigError(f"{entry.path}: is the same frame as {found[name].path}; keep one of the two files")
            status = entry.stat()
            found[name] = File(entry.path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}); check data.root") from None
    return found


def walk(folder: str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below a folder after the path of its own folder (`city/`), relative to the first."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix, entry


def pair(images: Path, labels: Path, part: str, endings: tuple[str, ...], label_ending: str) -> list[Frame]:
    """Pair the frames below `images/part` with the labels that have the same names below `labels/part`.

    Labels without a frame are left out.

    Raises:
        ConfigError: a frame has no label (the first is named, the others counted).
    """
    frames, truths = scan(images / part, endings), scan(labels / part, (label_ending,))
    missing = sorted(frames.keys() - truths.keys())
    if missing:
        more = f" (and {len(missing) - 1} more frames have none)" if len(missing) > 1 else ""
        raise ConfigError(
            f"{frames[missing[0]].path}: has no label, {labels / part / missing[0]}{label_ending} is missing{more}; "
            "add the label or take the frame away"
        )
    return [
        Frame(
            name=f"{part}/{name}" if part else name,
            image=image.path,
            label=truths[name].path,
            identity=(image.size, image.mtime_ns, truths[name].size, truths[name].mtime_ns),
        )
        for name, image in frames.items()
    ]


def read_pair(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Decode a frame of `pair`: (H, W, 3) uint8 RGB and (H, W) integer ids; raises ConfigError naming the file.

    A photo is turned as its EXIF data say, as people saw it who labelled it.
    """
    return to_rgb(upright(frame.image), frame.image), to_ids(decode(frame.label), frame.label)


def upright(path: str) -> Image.Image:
    """Decode an image file as people see it; raises ConfigError naming the file."""
    image = decode(path)
    try:
        return ImageOps.exif_transpose(image)
    except DECODING_ERRORS as error:
        raise undecodable(path, error) from None


def decode(path: str) -> Image.Image:
    """Decode a whole image file; raises ConfigError naming the file where it is truncated or damaged."""
    try:
        image = Image.open(io.BytesIO(Path(path).read_bytes()))
        image.load()
    except DECODING_ERRORS as error:
        raise undecodable(path, error) from None
    return image


def undecodable(place: str, error: Exception) -> ConfigError:
    """The error for a file or row that PIL cannot decode."""
    reason = str(error).partition("\n")[0]
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    return ConfigError(f"{place}: cannot be decoded ({reason or type(error).__name__}); replace it or take it away")


def to_rgb(image: Image.Image, place: str) -> np.ndarray:
    """The pixels as (H, W, 3) uint8; raises ConfigError for more than eight bits, which PIL would clip."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ConfigError(f"{place}: has pixels of mode {image.mode}, must have 8 bits per channel; convert the frame")
    return np.asarray(image.convert("RGB"))


def to_ids(image: Image.Image, place: str) -> np.ndarray:
    """The pixels as (H, W) integers, a palette's indices as they are; raises ConfigError for colours and fractions."""
    channels = len(image.getbands())
    if channels != 1:
        raise ConfigError(
            f"{place}: has {channels} channels ({image.mode}), a label must have one with an id per pixel; "
            "convert the colours to ids"
        )
    if image.mode == "F":
        raise ConfigError(f"{place}: holds fractions (mode F), a label must hold whole ids; convert it")
    ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == bool else ids
