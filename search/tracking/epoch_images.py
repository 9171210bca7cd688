"""Overlays of epochs as MLflow's time-stepped images, which its image grid shows side by side for several runs."""

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fgseg.storage.store import Store
from fgseg.visual.overlays import is_whole, overlay_epochs, read_epoch_overlays
from search.tracking.run_schema import milliseconds

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.tracking.run_reader import TrackedRun

IMAGE_EPOCHS = "fgseg.images"
"""Tag of a trial's run: the epochs whose overlays are logged, such as `1, 3, 5`.  Set after they are logged."""
HAS_IMAGES = "mlflow.loggedImages"
"""MLflow's tag, set after an image is logged; its pages show the images of runs with this tag only."""
SMALLER_FILE = re.compile(r"images/overlay[~#](.+)[%+]step[%+](\d+)[%+]timestamp.+compressed\.webp")
"""Path of the second one of the two files that MLflow writes for an image; the separators depend on its version."""


def image_epochs(run: "TrackedRun") -> set[int]:
    """Return the epochs whose overlays are logged."""
    return {int(epoch) for epoch in run.tags.get(IMAGE_EPOCHS, "").split(",") if epoch}


def missing_image_epochs(run: "TrackedRun", record: "TrialRecord") -> set[int]:
    """Return the epochs after which a trial has saved overlays, if it saves any, and which its run lacks."""
    return {epoch for epoch in overlay_epochs(record.length) if epoch <= len(record.epochs)} - image_epochs(run)


def log_epoch_images(
    client: Any, run: "TrackedRun", record: "TrialRecord", store: Store, epochs: set[int]
) -> dict[str, str]:
    """Log the overlays of some epochs of a trial as `overlay/<frame>`, with the epoch as step.

    MLflow names the files of an image at random, so that an image that is logged twice is shown twice.  Hence those of
    the run are listed first, unless this process has created the run.

    Args:
        client: of MLflow; its errors are raised.
        run: of the trial.
        record: of the trial.
        store: the trial's folder.
        epochs: of the trial.

    Returns:
        IMAGE_EPOCHS with its new value; empty if the trial has no overlays of these epochs.
    """
    overlays = read_epoch_overlays(store, epochs)
    known = logged_images(client, run) if overlays else set()
    for (epoch, frame), png in sorted(overlays.items()):
        if (epoch, frame) not in known and is_whole(png):
            moment = milliseconds(record.epochs[epoch - 1].wall_time)
            client.log_image(run.run_id, as_rgb(png), key=f"overlay/{frame}", step=epoch, timestamp=moment)
    logged = image_epochs(run) | {epoch for epoch, _ in overlays}
    return {IMAGE_EPOCHS: ", ".join(map(str, sorted(logged)))} if overlays else {}


def as_rgb(png: bytes) -> Any:
    """Return the picture of a PNG file in RGB: MLflow would shrink one with a palette without smoothing it."""
    from PIL import Image

    return Image.open(BytesIO(png)).convert("RGB")


def logged_images(client: Any, run: "TrackedRun") -> set[tuple[int, str]]:
    """Return epoch and frame of every overlay that is logged completely."""
    if run.is_new or HAS_IMAGES not in run.tags:
        return set()
    paths = [file.path for file in client.list_artifacts(run.run_id, "images")]
    return {(int(match[2]), match[1]) for path in paths if (match := SMALLER_FILE.fullmatch(path))}
