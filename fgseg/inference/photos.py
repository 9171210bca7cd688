"""Photos: finding them, and writing the mask and the overlay of each."""

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError
from fgseg.data.folder import FRAME_ENDINGS
from fgseg.inference.trained_model import TrainedModel

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

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
    found: TrainedModel,
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
        scale: see `fgseg.inference.tiling.working_size`.
        tell: called after each photo.

    Returns:
        Why photos could not be done, one line each; all others are done.

    Raises:
        ConfigError: the model cannot be used.
        OSError: a mask cannot be written.
    """
    from fgseg.inference.trained_model import load_trained

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

    from fgseg.data.image_files import decode_rotated, to_rgb

    return Image.fromarray(to_rgb(decode_rotated(str(path)), str(path)))


def labels_of(
    image: "Image.Image", model: "nn.Module", frame: tuple[int, int], device: str, scale: float
) -> "np.ndarray":
    """The labels of a picture at its own size: (H, W) uint8, 0-6."""
    import numpy as np
    import torch
    from PIL import Image

    from fgseg.inference.tiling import labels_at, tiled_logits, working_size

    size = (image.height, image.width)
    height, width = working_size(size, frame, scale)
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    logits = tiled_logits(model, torch.from_numpy(resized).permute(2, 0, 1), frame, device)
    return labels_at(logits, size).numpy()


def write(photo: Photo, image: "Image.Image", labels: "np.ndarray") -> None:
    """Write the overlay, then the mask, each whole or not at all."""
    import numpy as np
    from PIL import Image

    from fgseg.visual.label_images import overlay

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
