"""Reader of the official Cityscapes layout, with any city names and .png or .jpg frames.

ROOT/leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png
ROOT/gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png
"""

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame, Pool, draw
from fgseg.data.image_files import pair, read_pair, root_folder
from fgseg.labels import cityscapes_table

FRAME_ENDINGS = ("_leftImg8bit.png", "_leftImg8bit.jpg")
LABEL_ENDING = "_gtFine_labelIds.png"


class CityscapesReader:
    """Draw train from the folder `train`; val and test from the folder `val`, or from `train` if `val` is empty."""

    advice = "write the label again with cityscapesscripts, or use the reader folder with an id table of your own"
    remote = False

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.root = root_folder(cfg)
        self.table = cityscapes_table(cfg.label_set(), cfg.void)

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of each split (see `Reader.splits`)."""
        train, val = self.pool("train"), self.pool("val")
        if not train.frames:
            raise ConfigError(
                f"data.root: {train.location} has no frames (*{FRAME_ENDINGS[0]} or .jpg); "
                "name the folder that holds leftImg8bit and gtFine"
            )
        return draw(self.cfg, train, val)

    def pool(self, part: str) -> Pool:
        """List the frames of one official split."""
        images, labels = self.root / "leftImg8bit" / part, self.root / "gtFine" / part
        return Pool(str(images), pair(images, labels, part, FRAME_ENDINGS, LABEL_ENDING))

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode a frame and its ids (see `Reader.load`)."""
        return read_pair(frame)
