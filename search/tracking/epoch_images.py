"""Overlays of epochs as MLflow's time-stepped images, which its image grid shows side by side for several runs."""

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fgseg.storage.store import Store
from fgseg.visual.overlays import LABELS, overlay_epochs, read_epoch_overlays
from search.tracking.run_schema import milliseconds

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.tracking.run_reader import TrackedRun

IMAGE_EPOCHS = "fgseg.images"
"""Tag of a trial's run: the epochs whose overlays are logged, such as `0, 1, 3, 5`, where 0 is LABELS.  Set after they
are logged."""
HAS_IMAGES = "mlflow.loggedImages"
"""MLflow's tag of runs whose images its pages show.  `log_image` sets it last, if it is not killed before."""
SMALLER_FILE = re.compile(r"images/overlay[~#](.+)[%+]step[%+](\d+)[%+]timestamp.+compressed\.webp")
"""Path of the second one of the two files that MLflow writes for an image; the separators depend on its version."""


def image_epochs(run: "TrackedRun") -> set[int]:
    """Return the epochs whose overlays are logged."""
    return {int(epoch) for epoch in run.tags.get(IMAGE_EPOCHS, "").split(",") if epoch}


def missing_images(run: "TrackedRun", record: "TrialRecord") -> list[int]:
    """Return the epochs after which a trial has saved overlays, if it saves any, and which its run lacks."""
    logged = image_epochs(run)
    return [epoch for epoch in recorded_overlay_epochs(record) if epoch not in logged]


def recorded_overlay_epochs(record: "TrialRecord") -> list[int]:
    """Return LABELS and the recorded epochs of a trial after which it has saved overlays, if it saves any."""
    done = len(record.epochs)
    return [LABELS, *(epoch for epoch in overlay_epochs(record.last_epoch) if epoch <= done)] if done else []


def log_images(client: Any, run: "TrackedRun", record: "TrialRecord", store: Store) -> dict[str, str]:
    """Log the missing overlays of a trial as `overlay/<frame>`, with the epoch as step, which is 0 for LABELS.

    MLflow names the files of an image at random, so that an image that is logged twice is shown twice.  Hence those of
    the run are listed first, unless this process has created the run.

    Args:
        client: of MLflow; its errors are raised.
        run: of the trial.
        record: of the trial.
        store: the trial's folder.

    Returns:
        The tags to be set: HAS_IMAGES, and IMAGE_EPOCHS with its new value; empty if there was nothing to log.
    """
    overlays = {epoch: found for epoch in missing_images(run, record) if (found := read_epoch_overlays(store, epoch))}
    known = logged_images(client, run) if overlays else set()
    for epoch, pictures in overlays.items():
        moment = milliseconds(record.epochs[max(epoch, 1) - 1].wall_time)
        for frame, png in pictures.items():
            if (epoch, frame) not in known:
                client.log_image(run.run_id, as_rgb(png), key=f"overlay/{frame}", step=epoch, timestamp=moment)
    logged = sorted({*image_epochs(run), *overlays})
    return {HAS_IMAGES: "True", IMAGE_EPOCHS: ", ".join(map(str, logged))} if overlays else {}


def as_rgb(png: bytes) -> Any:
    """Return the picture of a PNG file in RGB: MLflow would shrink one with a palette without smoothing it."""
    from PIL import Image

    return Image.open(BytesIO(png)).convert("RGB")


def logged_images(client: Any, run: "TrackedRun") -> set[tuple[int, str]]:
    """Return epoch and frame of every overlay that is logged completely."""
    if run.is_new:
        return set()
    paths = [file.path for file in client.list_artifacts(run.run_id, "images")]
    return {(int(match[2]), match[1]) for path in paths if (match := SMALLER_FILE.fullmatch(path))}
