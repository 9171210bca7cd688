"""Hugging Face data sets with the columns `image` and `semantic_segmentation`: a hub id or a folder of save_to_disk.

Labels hold Cityscapes ids, in the first channel where they have three.  Splits: `train`, and `validation` or `val`.
The only file that imports `datasets`, and only when frames are listed.
"""

import hashlib
import importlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data.datasets import Frame, Pool, draw
from fgseg.data.image_files import DECODING_ERRORS, root_folder, to_ids, to_rgb, undecodable
from fgseg.labels import cityscapes_table

COLUMNS = ("image", "semantic_segmentation")
SAVED = ("dataset_info.json", "dataset_dict.json")
"""One of these is in every folder that save_to_disk has written."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class HubReader:
    """Trains on the split `train`; validates and tests on `validation` or `val`, or on other rows of `train`."""

    advice = "the hub reader takes Cityscapes ids; for others save the frames as files and use the reader folder"

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.table = cityscapes_table(cfg.void)
        named = cfg.root or ""
        self.remote = not Path(named).expanduser().exists() and HUB_ID.fullmatch(named) is not None
        self.root = named if self.remote else str(saved_folder(cfg))

    @cached_property
    def sets(self) -> dict[str, Any]:
        """The data set's splits by name; a data set without splits counts as `train`."""
        datasets = import_datasets()
        loaded = self.fetch(datasets)
        sets = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
        if "train" not in sets:
            raise ConfigError(f"data.root: {self.root} has the splits {', '.join(sets)}, must have train; save it so")
        for name, rows in sets.items():
            check_columns(f"{self.root}, split {name}", rows.features, datasets.Image)
        return sets

    def fetch(self, datasets: Any) -> Any:
        """What `datasets` loads for the root; raises ConfigError where it can not."""
        try:
            return datasets.load_dataset(self.root) if self.remote else datasets.load_from_disk(self.root)
        except Exception as error:  # the library raises many kinds, and those of what it reads with
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if self.remote:
            raise ConfigError(
                f"data.root: {self.root} is no folder here and could not be had from the hub ({reason}); check the id, "
                "the network and HF_HUB_OFFLINE, or name a folder written by save_to_disk"
            )
        raise ConfigError(f"data.root: {self.root} cannot be loaded ({reason}); write it anew with save_to_disk")

    def splits(self) -> dict[str, list[Frame]]:
        """See `Reader.splits`; a hub id is downloaded first."""
        heldout = next((name for name in ("validation", "val") if name in self.sets), None)
        return draw(self.cfg, self.pool("train"), None if heldout is None else self.pool(heldout))

    def pool(self, split: str) -> Pool:
        """The rows of one split."""
        place, rows = f"{self.root}, split {split}", self.sets[split]
        stamp = stamp_files([file["filename"] for file in rows.cache_files])
        frames = []
        for row in range(len(rows)):
            image, label = (f"{place}, row {row}, column {column}" for column in COLUMNS)
            frames.append(Frame(f"{split}/{row:07d}", image, label, (stamp, row)))
        return Pool(place, frames)

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """See `Reader.load`."""
        split, _, row = frame.name.partition("/")
        rows = self.sets[split]
        image = decode_cell(rows.select_columns(COLUMNS[0]), int(row), frame.image)
        label = decode_cell(rows.select_columns(COLUMNS[1]), int(row), frame.label)
        if len(label.getbands()) > 1:
            label = label.getchannel(0)
        return to_rgb(image, frame.image), to_ids(label, frame.label)


def saved_folder(cfg: DataConfig) -> Path:
    """The folder in data.root; raises ConfigError where save_to_disk has not written it."""
    root = root_folder(cfg)
    if not any((root / name).is_file() for name in SAVED):
        raise ConfigError(
            f"data.root: {cfg.root} has neither {' nor '.join(SAVED)}; "
            "name a folder written by save_to_disk, or a hub id"
        )
    return root


def import_datasets() -> Any:
    """The module `datasets`, late: it takes most of a second, and the other readers do without."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(f"data.reader: hub needs the package datasets ({error}); install it") from None


def check_columns(place: str, features: Any, image_feature: type) -> None:
    """Raise ConfigError unless both columns are there and hold images."""
    if any(not isinstance(features.get(column), image_feature) for column in COLUMNS):
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise ConfigError(f"{place}: has the columns {found}; must have {' and '.join(COLUMNS)}, both images")


def stamp_files(paths: list[str]) -> str:
    """Sum up names, sizes and times of the files that hold the rows."""
    status = [(Path(path).name, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(repr(status).encode()).hexdigest()


def decode_cell(column: Any, row: int, place: str) -> Image.Image:
    """Decode one image of a data set with that column only; raises ConfigError naming the row."""
    try:
        image = next(iter(column[row].values()))
    except DECODING_ERRORS as error:
        raise undecodable(place, error) from None
    if not isinstance(image, Image.Image):
        raise ConfigError(f"{place}: holds nothing, must hold an image; fill or drop the row")
    return image
