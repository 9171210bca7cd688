"""Reader of the procedural street scenes, rendered at `data.height` x `data.width`."""

import numpy as np

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame
from fgseg.data.streets.scene import RELEASE, render
from fgseg.labels import cityscapes_table

MAX_SCENES = 1_000_000
"""Scenes of a split, at most; a larger `data.<split>` raises ConfigError."""
FIRST_INDEX = {"train": 0, "val": MAX_SCENES, "test": 2 * MAX_SCENES}
"""Index of the first scene of each split, so that no split depends on the size of another.

Each is a multiple of `scene.COMPLETE_EVERY`, so that the first scene of a split contains all classes.
"""


class StreetsReader:
    """Render the scenes of the seed `data.seed`."""

    advice = "this is a bug in fgseg.data.streets.scene; please report it"
    remote = False

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.table = cityscapes_table(cfg.label_set(), "background")

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of each split (see `Reader.splits`)."""
        counts = {name: getattr(self.cfg, name) for name in FIRST_INDEX}
        for name, count in counts.items():
            if count > MAX_SCENES:
                raise ConfigError(f"data.{name}: got {count}, there are {MAX_SCENES} streets for a split; lower it")
        return {name: [self.frame(FIRST_INDEX[name] + i) for i in range(count)] for name, count in counts.items()}

    def frame(self, index: int) -> Frame:
        """Return the undrawn scene of one index."""
        location = f"streets, scene {index} of seed {self.cfg.seed}"
        return Frame(f"{index:07d}", location, location, (RELEASE, self.cfg.seed, index))

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Render a scene: (H, W, 3) uint8 RGB and (H, W) uint8 ids, at the size of the settings."""
        return render(self.cfg.seed, int(frame.name), self.cfg.height, self.cfg.width)
