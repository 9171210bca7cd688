"""Image files: pair images with labels below two folders, and decode them with errors that name the file."""

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
"""Mean of ImageNet's pixels by channel (RGB), for values in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's pixels by channel (RGB), for values in [0, 1]."""
DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""The exceptions of PIL for a file that is truncated, damaged or not an image."""


class File(NamedTuple):
    """A file with its size in bytes and its modification time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


def root_folder(cfg: DataConfig) -> Path:
    """Return the folder in `data.root`; raises ConfigError if it does not exist."""
    if cfg.root is None:
        raise ConfigError(f"data.root: got nothing, the reader {cfg.reader} needs a folder; add --set data.root=DIR")
    try:
        root = Path(cfg.root).expanduser()
        exists, is_folder = root.exists(), root.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"data.root: {cfg.root!r} cannot be accessed ({error}); name another folder") from None
    if not is_folder:
        problem = "is not a folder" if exists else "does not exist"
        raise ConfigError(f"data.root: {cfg.root} {problem}; name the folder of the data set")
    return root


def scan(folder: Path, endings: tuple[str, ...]) -> dict[str, File]:
    """Find the files below a folder whose names end in one of `endings`; hidden files and folders are skipped.

    Returns:
        Files by their path relative to the folder, without the ending; empty if the folder does not exist.

    Raises:
        ConfigError: two files differ only in their ending, or a folder cannot be read.
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
    """Yield every file below a folder with the path of its own folder (`city/`) relative to the first folder."""
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
    """Pair the images below `images` with the labels of the same names below `labels`.

    Labels without an image are skipped.

    Args:
        images, labels: the two folders; subfolders must be the same.
        part: prefix of the frames' names, such as `train`; empty for none.
        endings: of image files.
        label_ending: of label files, after the name of the image.

    Raises:
        ConfigError: an image has no label; the message names the first such image and the number of the others.
    """
    frames, label_files = scan(images, endings), scan(labels, (label_ending,))
    missing = sorted(frames.keys() - label_files.keys())
    if missing:
        more = f" (and {len(missing) - 1} more frames have none)" if len(missing) > 1 else ""
        raise ConfigError(
            f"{frames[missing[0]].path}: has no label, {labels / missing[0]}{label_ending} is missing{more}; "
            "add the label or remove the frame"
        )
    return [
        Frame(
            name=f"{part}/{name}" if part else name,
            image=image.path,
            label=label_files[name].path,
            identity=(image.size, image.mtime_ns, label_files[name].size, label_files[name].mtime_ns),
        )
        for name, image in frames.items()
    ]


def read_pair(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Decode a frame of `pair`: (H, W, 3) uint8 RGB and (H, W) integer ids; raises ConfigError naming the file.

    The image is rotated by its EXIF orientation, since labelling tools show it that way; the label is not.
    """
    return to_rgb(decode_rotated(frame.image), frame.image), to_ids(decode(frame.label), frame.label)


def decode_rotated(path: str) -> Image.Image:
    """Decode an image file and apply its EXIF orientation; raises ConfigError naming the file."""
    image = decode(path)
    try:
        return ImageOps.exif_transpose(image)
    except DECODING_ERRORS as error:
        raise decoding_error(path, error) from None


def decode(path: str) -> Image.Image:
    """Decode a whole image file; raises ConfigError naming the file if it is truncated or damaged."""
    try:
        image = Image.open(io.BytesIO(Path(path).read_bytes()))
        image.load()
    except DECODING_ERRORS as error:
        raise decoding_error(path, error) from None
    return image


def decoding_error(location: str, error: Exception) -> ConfigError:
    """Return the ConfigError for a file or row that PIL cannot decode."""
    reason = str(error).partition("\n")[0]
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    return ConfigError(f"{location}: cannot be decoded ({reason or type(error).__name__}); replace or remove it")


def to_rgb(image: Image.Image, location: str) -> np.ndarray:
    """Convert an image to (H, W, 3) uint8 RGB; raises ConfigError for over 8 bits per channel, which PIL would clip."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ConfigError(
            f"{location}: has pixels of mode {image.mode}, must have 8 bits per channel; convert the frame"
        )
    return np.asarray(image.convert("RGB"))


def to_ids(image: Image.Image, location: str) -> np.ndarray:
    """Convert a label image to (H, W) integer ids or palette indices; raises ConfigError for colours and floats."""
    channels = len(image.getbands())
    if channels != 1:
        raise ConfigError(
            f"{location}: has {channels} channels ({image.mode}), a label must have one with an id per pixel; "
            "convert the colours to ids"
        )
    if image.mode == "F":
        raise ConfigError(f"{location}: holds floats (mode F), a label must hold whole ids; convert it")
    ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == bool else ids
