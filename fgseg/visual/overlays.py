"""Overlays of a model's predictions on a few validation frames, the same ones for every trial."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING
from zipfile import ZipFile, ZipInfo

import numpy as np
from PIL import Image, ImageDraw

from fgseg.data import FrameSet
from fgseg.labels import LabelSet
from fgseg.storage.store import Store
from fgseg.visual.label_images import encode_png, overlay, strip, to_width

if TYPE_CHECKING:
    from torch import nn

COUNT = 4
"""Frames of which overlays are saved."""
MAX_WIDTH_PX = 512
"""Maximum width of each of the three pictures of a file."""
EPOCH_WIDTH_PX = 310
"""Maximum width of the overlay of an epoch.  COUNT frames at three epochs, and their labels, then take at most 3 MB in
MLflow, even if they show noise: MLflow stores a picture in RGB without loss, and a smaller one."""
LABELS = 0
"""In place of an epoch: the labels of the frames, where MLflow's slider over the epochs begins."""
MAX_NAME_CHARS = 80
"""Characters of a frame's name, the last ones, in the names of the overlays of epochs; a file name has at most 255."""
NAME = re.compile(r"overlay-\d+-(.+\.png)")
UNSAFE = re.compile(r"[^\w.-]+")
UNSAFE_ASCII = re.compile(UNSAFE.pattern, re.ASCII)


def overlay_epochs(epochs: int) -> list[int]:
    """Return the epochs of a training after which overlays are saved: first, middle and last, ascending."""
    return sorted({1, (epochs + 1) // 2, epochs}) if epochs > 0 else []


def save_overlays(
    store: Store,
    model: "nn.Module",
    frames: FrameSet,
    classes: LabelSet,
    *,
    epoch: int,
    epochs: int,
    window: tuple[int, int] | None = None,
) -> None:
    """Write the overlays of an epoch into a trial's store, if it is one of `overlay_epochs`.

    A ZIP file has one PNG per frame, the prediction over the darkened photo; after the first epoch, another one has the
    labels.  After the last epoch there is one more PNG per frame: photo, truth and prediction side by side.

    Args:
        store: of the trial.
        model: as for `fgseg.metrics.evaluator.evaluate`.
        frames: the validation split; COUNT of its frames are taken, evenly spaced.
        classes: the label set of the frames.
        epoch: the epoch that was trained last, from 1.
        epochs: length of the training.
        window: as for `fgseg.metrics.evaluator.evaluate`.
    """
    if epoch not in overlay_epochs(epochs):
        return
    import torch  # imported here because the driver, which needs no torch, imports this module

    from fgseg.metrics.evaluator import predict_labels

    index = np.linspace(0, len(frames) - 1, min(COUNT, len(frames))).round().astype(int)
    photos, truth = np.asarray(frames.images[index]), np.asarray(frames.labels[index])
    predicted = predict_labels(model, torch.from_numpy(photos).permute(0, 3, 1, 2), window).numpy()
    names = [frames.names[at] for at in index]
    drawn = [(epoch, predicted, ""), *([(LABELS, truth, "labels")] if epoch == 1 else [])]
    for number, labels, title in drawn:
        pictures = [draw_small(*arrays, classes, title) for arrays in zip(photos, labels, strict=True)]
        store.put(epoch_overlays_name(number), pack(dict(zip(short_names(names), pictures, strict=True))))
    if epoch < epochs:
        return
    for number, (name, *arrays) in enumerate(zip(names, photos, truth, predicted, strict=True), 1):
        photo, real, found = to_width(MAX_WIDTH_PX, classes, *arrays)
        panels = [photo, *(overlay(photo // 2, labels, classes, 0.75) for labels in (real, found))]
        store.put(overlay_name(number, name), encode_png(strip(panels)))


def draw_small(photo: np.ndarray, labels: np.ndarray, classes: LabelSet, title: str) -> bytes:
    """Return labels (H, W) over a darkened photo (H, W, 3), both uint8, as a PNG at most EPOCH_WIDTH_PX wide."""
    photo, labels = to_width(EPOCH_WIDTH_PX, classes, photo, labels)
    picture = Image.fromarray(overlay(photo // 2, labels, classes, 0.75))
    ImageDraw.Draw(picture).text((3, 1), title, "white")
    return encode_png(np.asarray(picture))


def short_names(frames: Sequence[str]) -> list[str]:
    """Return a distinct name for each frame: its last MAX_NAME_CHARS characters, numbered where several are equal.

    Characters other than ASCII letters, digits, ".", "_" and "-", which MLflow refuses, become "_".
    """
    names = [UNSAFE_ASCII.sub("_", frame)[-MAX_NAME_CHARS:] for frame in frames]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]


def epoch_overlays_name(epoch: int) -> str:
    """Return the file name of the overlays of an epoch, or of LABELS.

    One file, since a driver that lists a folder on NFS may not see a new file of another machine for a minute.
    """
    return f"overlays-{epoch}.zip"


def pack(pictures: Mapping[str, bytes]) -> bytes:
    """Return a ZIP file of PNG files by name; equal input gives equal bytes."""
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, png in pictures.items():
            archive.writestr(ZipInfo(name), png)  # without the time
    return buffer.getvalue()


def read_epoch_overlays(store: Store, epoch: int) -> dict[str, bytes] | None:
    """Read the overlays of an epoch, or LABELS: PNG files by `short_names`; empty without any, None if damaged."""
    try:
        data = store.get(epoch_overlays_name(epoch))
    except FileNotFoundError:
        return {}
    try:
        with ZipFile(BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}  # raises if a checksum is wrong
    except Exception:  # zipfile raises many types for damaged files
        return None


def overlay_name(number: int, frame: str) -> str:
    """Return a file name: the number, and the frame's name with unsafe characters replaced by "_"."""
    return f"overlay-{number}-{UNSAFE.sub('_', frame)}.png"


def read_overlays(store: Store) -> dict[str, bytes]:
    """Read the overlays of a trial by frame name; empty if there are none."""
    return {match[1]: store.get(name) for name in store.list() if (match := NAME.fullmatch(name))}


def is_whole(png: bytes) -> bool:
    """Return whether a PNG file is complete and the checksums of all its chunks are right."""
    try:
        Image.open(BytesIO(png), formats=["PNG"]).verify()
    except Exception:  # Pillow raises many types for damaged files
        return False
    return png.endswith(b"\0\0\0\0IEND\xaeB`\x82")  # Pillow does not check the last chunk
