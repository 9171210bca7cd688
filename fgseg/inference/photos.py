"""Find photos, and write the mask and the overlay of each."""

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError
from fgseg.data.folder import FRAME_ENDINGS
from fgseg.inference.trained_model import TrainedModel
from fgseg.labels import LabelSet

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

JPEG_QUALITY = 92
"""JPEG quality of the overlays, of 100."""


@dataclass(frozen=True)
class Photo:
    """One photo, and the files of its results."""

    path: Path
    mask: Path
    """PNG with one channel: the label of each pixel."""
    overlay: Path
    """JPEG: the class colours blended over the photo."""


def find_photos(paths: Sequence[Path], out: Path) -> list[Photo]:
    """List the given photos and those below the given folders, in order.

    Args:
        paths: files with any suffix, and folders, which are searched with their subfolders.
        out: the folder of results; those of a folder's photos keep their relative paths below it.

    Raises:
        ConfigError: a path does not exist, a folder has no photos, two photos would have the same mask, or a result
            would overwrite one of the photos.
    """
    photos: dict[Path, Photo] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"PHOTOS: {path} does not exist; name photos or their folder")
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
    """List the pictures below a folder as (path, path relative to it), without hidden ones and those below `out`."""
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
    on_photo: Callable[[Photo], None] = lambda photo: None,
) -> list[str]:
    """Write the mask and the overlay of each photo.

    Args:
        found: the model; its geometry must be known.
        photos: to predict.
        device: a device of torch, such as cpu or cuda:0.
        scale: factor on the size at which the model sees a photo; 2 makes objects twice as large as in training and
            takes four times the work, in tiles.
        on_photo: called after each photo.

    Returns:
        One line with the reason for each photo that failed; all other photos are written.

    Raises:
        ConfigError: the model cannot be used.
        OSError: a mask cannot be written.
    """
    from fgseg.inference.trained_model import load_trained

    model, faults = load_trained(found, device), []
    for photo in photos:
        try:
            image = open_upright(photo.path)
        except ConfigError as error:
            faults.append(str(error))
        else:
            try:
                labels = labels_of(image, model, found, device, scale)
                save_results(photo, image, labels, found.classes)
            except OSError as error:
                if error.errno is not None:
                    raise
                faults.append(
                    f"{photo.path}: no overlay can be made ({error})"
                )  # a side over 65,500 pixels, the limit of JPEG
        on_photo(photo)
    return faults


def open_upright(path: Path) -> "Image.Image":
    """Open a picture in RGB, rotated as its EXIF data require; raises ConfigError if it is no picture."""
    from PIL import Image

    from fgseg.data.image_files import decode_rotated, to_rgb

    return Image.fromarray(to_rgb(decode_rotated(str(path)), str(path)))


def labels_of(image: "Image.Image", model: "nn.Module", found: TrainedModel, device: str, scale: float) -> "np.ndarray":
    """Predict the labels of a picture at its own size: (H, W) uint8.

    The model sees the picture as `Geometry.whole` makes it, in windows of its training crops or of its frames where
    these are smaller; its logits are resized bilinearly to the picture.
    """
    assert found.geometry is not None
    import numpy as np
    import torch

    from fgseg.inference.tiling import labels_at, tiled_logits, without_padding

    size, geometry = (image.height, image.width), found.geometry.scaled(scale)
    whole = torch.tensor(geometry.whole(np.asarray(image))).permute(2, 0, 1)
    logits = tiled_logits(model, whole, found.geometry.size, device, found.window)
    return labels_at(without_padding(logits, geometry, size), size).numpy()


def save_results(photo: Photo, image: "Image.Image", labels: "np.ndarray", classes: LabelSet) -> None:
    """Write the overlay, then the mask, each atomically."""
    import numpy as np
    from PIL import Image

    from fgseg.visual.label_images import overlay

    photo.mask.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(Image.fromarray(overlay(np.asarray(image), labels, classes)), photo.overlay)
    save_atomically(Image.fromarray(labels), photo.mask)


def save_atomically(image: "Image.Image", path: Path) -> None:
    """Write an image to a temporary file in the same folder, then rename it."""
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        image.save(part, quality=JPEG_QUALITY)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
