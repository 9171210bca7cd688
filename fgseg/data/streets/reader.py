"""The procedural street scenes as a data set: drawn at the size of the settings, as many as are asked for."""

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame
from fgseg.data.streets.scene import RELEASE, render
from fgseg.labels import CLASSES, VOID

MOST = 1_000_000
"""Scenes of a split."""
FIRST_INDEX = {"train": 0, "val": MOST, "test": 2 * MOST}
"""Where the scenes of each split begin: far apart, so that no split depends on the size of another.

Every fourth scene holds all classes, and so does therefore the first of each split.
"""


class StreetsReader:
    """Scenes of the seed data.seed."""

    table = {c.label: c.label for c in CLASSES} | {VOID: VOID}
    advice = "this is a fault of fgseg.data.streets.scene; please report it"
    remote = False

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg

    def splits(self) -> dict[str, list[Frame]]:
        """See `Reader.splits`."""
        counts = {name: getattr(self.cfg, name) for name in FIRST_INDEX}
        for name, count in counts.items():
            if count > MOST:
                raise ConfigError(f"data.{name}: got {count}, there are {MOST} streets for a split; lower it")
        return {name: [self.frame(FIRST_INDEX[name] + i) for i in range(count)] for name, count in counts.items()}

    def frame(self, index: int) -> Frame:
        """The scene of one index."""
        place = f"streets, scene {index} of seed {self.cfg.seed}"
        return Frame(f"{index:07d}", place, place, (RELEASE, self.cfg.seed, index))

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Draw a scene: (H, W, 3) uint8 and (H, W) uint8 labels at the size of the settings."""
        return render(self.cfg.seed, int(frame.name), self.cfg.height, self.cfg.width)
