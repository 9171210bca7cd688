"""Reader of a folder of images and labels with a table of ids.

    ROOT/images/<name>.jpg       or .jpeg, .png, .webp, .bmp, .tif, .tiff; subfolders are allowed
    ROOT/labels/<name>.png       one channel with an id per pixel (or a palette index), in the same subfolders
    ROOT/labels.yaml             maps each id to a class of the label set, or to void: not trained, not counted

        ids: {0: background, 5: fence, 7: pole, 8: traffic_sign, 9: traffic light, 11: car, 12: vegetation, 255: void}

If images/train exists, train is drawn from it, and val and test are drawn from images/val if that has frames; labels/
must have the same subfolders.  The setting `data.void` is ignored: the table decides which ids are void.
"""

from pathlib import Path

import numpy as np

from fgseg.config.errors import ConfigError, check_name
from fgseg.config.files import read_yaml
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame, Pool, draw
from fgseg.data.image_files import pair, read_pair, root_folder
from fgseg.labels import VOID, LabelSet

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LABEL_ENDING = ".png"
EXAMPLE = "`ids: {0: background, 5: fence, 7: pole, 8: traffic_sign, 9: traffic_light, 11: car, 12: vegetation}`"


class FolderReader:
    """Draw the splits from images/train and images/val if they exist, else all three from images/."""

    remote = False

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.root = root_folder(cfg)
        self.table = read_table(self.root / "labels.yaml", cfg.label_set())
        self.advice = f"add it to {self.root / 'labels.yaml'} or correct the label"

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of each split (see `Reader.splits`)."""
        official = (self.root / "images" / "train").is_dir()
        train = self.pool("train" if official else "")
        if not train.frames:
            raise ConfigError(
                f"data.root: {train.location} has no frames (*{', *'.join(FRAME_ENDINGS)}); "
                "name the folder that holds images and labels"
            )
        return draw(self.cfg, train, self.pool("val") if official else None)

    def pool(self, part: str) -> Pool:
        """List the frames of one subfolder of images/, or all frames if `part` is empty."""
        images, labels = self.root / "images", self.root / "labels"
        return Pool(str(images / part), pair(images, labels, part, FRAME_ENDINGS, LABEL_ENDING))

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode a frame and its ids (see `Reader.load`)."""
        return read_pair(frame)


def read_table(path: Path, classes: LabelSet) -> dict[int, int]:
    """Read labels.yaml as a mapping from id to label (a class's, or VOID).

    Raises:
        ConfigError: the file or its `ids` are missing, an id is not a whole number, a class is unknown (the nearest
            name is suggested), or no id means a class.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: is missing; write the class of each id into it, as in {EXAMPLE}")
    ids = read_yaml(path).get("ids")
    if not isinstance(ids, dict) or not ids:
        raise ConfigError(f"{path}: ids: got {ids!r}, must map each id to a class, as in {EXAMPLE}")
    known = {name: c.label for c in classes.classes for name in (c.name, c.key)} | {"void": VOID}
    for number, name in ids.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(f"{path}: ids: got the id {number!r}, must be a whole number; correct it")
        check_name(str(name), known, f"{path}: ids: {number}: {name} is not a class")
    table = {number: known[str(name)] for number, name in ids.items()}
    if not set(classes.foreground_labels) & set(table.values()):
        keys = ", ".join(c.key for c in classes.foreground)
        raise ConfigError(f"{path}: ids: no id means a class; name at least one of {keys}")
    return table
