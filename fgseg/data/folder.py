"""Reader of a folder of images and labels, described by its labels.yaml.

    ROOT/images/<name>.jpg       or .jpeg, .png, .webp, .bmp, .tif, .tiff; subfolders are allowed
    ROOT/labels/<name>.png       one channel with an id per pixel (or a palette index), or colours; same subfolders
    ROOT/labels.yaml             maps each id or colour to a class of the label set, or to void (ignored)

        ids: {0: background, 5: fence, 7: pole, 8: traffic_sign, 9: traffic light, 11: car, 12: vegetation, 255: void}

If images/train exists, train is drawn from it, and val and test are drawn from images/val if that has frames; labels/
must have the same subfolders.  The setting `data.void` is ignored: labels.yaml decides which ids are void.

Fields of labels.yaml for other layouts, all optional:

    images: training/image_2                     folder of the images, or `{train: ..., val: ...}`
    labels: training/semantic                    the same for the labels
    label_ending: _L.png                         end of a label's name, for <name>_L.png; default .png
    rest: background                             class of every id or colour that is not named; default: an error
    colours: {"128, 0, 0": building, ...}        for labels in colours, in place of `ids`
    classes: [{name: road, ids: [7]}, ...]       a label set of its own in place of `data.labels`, see configs/labels/
"""

from pathlib import Path

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.label_sets import LABELS_FILE
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame, Pool, draw
from fgseg.data.image_files import decode, decode_rotated, pair, root_folder, to_rgb
from fgseg.data.labels_file import read_labels_file

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class FolderReader:
    """Draw the splits from the folders of train and val if there are two, else all three from one folder."""

    remote = False

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.root = root_folder(cfg)
        self.file = read_labels_file(self.root / LABELS_FILE, cfg.label_set())
        self.table = self.file.table
        self.advice = f"add it to {self.file.path}, give `rest: {cfg.label_set().rest_key}` there, or correct the label"

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of each split (see `Reader.splits`)."""
        images = self.file.images
        official = isinstance(images, dict) or (self.root / images / "train").is_dir()
        train = self.pool("train" if official else "")
        if not train.frames:
            raise ConfigError(
                f"data.root: {train.location} has no frames (*{', *'.join(FRAME_ENDINGS)}); "
                "name the folder that holds images and labels"
            )
        heldout = official and (isinstance(images, str) or "val" in images)
        return draw(self.cfg, train, self.pool("val") if heldout else None)

    def pool(self, part: str) -> Pool:
        """List the frames of `train` or `val`, or all frames if `part` is empty."""
        images, labels = self.folder(self.file.images, part), self.folder(self.file.labels, part)
        return Pool(str(images), pair(images, labels, part, FRAME_ENDINGS, self.file.label_ending))

    def folder(self, named: str | dict[str, str], part: str) -> Path:
        """Return the folder of images or labels of a part; raises ConfigError if labels.yaml does not name it."""
        if isinstance(named, str):
            return self.root / named / part
        if part not in named:
            raise ConfigError(f"{self.file.path}: images and labels must name the same parts; {part} is missing in one")
        return self.root / named[part]

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode a frame and its ids (see `Reader.load`); the image is rotated by its EXIF orientation."""
        image = to_rgb(decode_rotated(frame.image), frame.image)
        return image, self.file.ids_of(decode(frame.label), frame.label)
