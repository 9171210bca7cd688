"""Reader of Hugging Face data sets: a hub id, or a folder written by `save_to_disk`.

Columns: `image` and `semantic_segmentation` (Cityscapes ids; of three channels the first one counts).  Splits: `train`,
and `validation` or `val`.  The only file that imports `datasets`, and only when frames are listed.
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
from fgseg.data.image_files import DECODING_ERRORS, decoding_error, root_folder, to_ids, to_rgb
from fgseg.labels import cityscapes_table

COLUMNS = ("image", "semantic_segmentation")
SAVE_TO_DISK_FILES = ("dataset_info.json", "dataset_dict.json")
"""`save_to_disk` writes at least one of these into its folder."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class HubReader:
    """Draw train from the split `train`; val and test from `validation` or `val`, or from `train` without either."""

    advice = "the hub reader takes Cityscapes ids; for others save the frames as files and use the reader folder"

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.table = cityscapes_table(cfg.label_set(), cfg.void)
        root = cfg.root or ""
        self.remote = not Path(root).expanduser().exists() and HUB_ID.fullmatch(root) is not None
        self.root = root if self.remote else str(saved_folder(cfg))

    @cached_property
    def datasets_by_split(self) -> dict[str, Any]:
        """Load the `datasets.Dataset` of each split; one without splits is returned as `train`."""
        datasets = import_datasets()
        loaded = self.load_dataset(datasets)
        by_split = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
        if "train" not in by_split:
            splits = ", ".join(by_split)
            raise ConfigError(f"data.root: {self.root} has the splits {splits}, must have train; save it with one")
        for name, rows in by_split.items():
            check_columns(f"{self.root}, split {name}", rows.features, datasets.Image)
        return by_split

    def load_dataset(self, datasets: Any) -> Any:
        """Load the root with the module `datasets`; raises ConfigError if that fails."""
        try:
            return datasets.load_dataset(self.root) if self.remote else datasets.load_from_disk(self.root)
        except Exception as error:  # datasets raises many types, and those of its file formats and HTTP client
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if self.remote:
            raise ConfigError(
                f"data.root: {self.root} is not a folder and cannot be loaded from the hub ({reason}); check the id, "
                "the network and HF_HUB_OFFLINE, or name a folder written by save_to_disk"
            )
        raise ConfigError(f"data.root: {self.root} cannot be loaded ({reason}); write it again with save_to_disk")

    def splits(self) -> dict[str, list[Frame]]:
        """List the frames of each split (see `Reader.splits`); downloads a hub id first."""
        heldout = next((name for name in ("validation", "val") if name in self.datasets_by_split), None)
        return draw(self.cfg, self.pool("train"), None if heldout is None else self.pool(heldout))

    def pool(self, split: str) -> Pool:
        """List the rows of one split."""
        location, rows = f"{self.root}, split {split}", self.datasets_by_split[split]
        identity = hash_file_status([file["filename"] for file in rows.cache_files])
        frames = []
        for row in range(len(rows)):
            image, label = (f"{location}, row {row}, column {column}" for column in COLUMNS)
            frames.append(Frame(f"{split}/{row:07d}", image, label, (identity, row)))
        return Pool(location, frames)

    def load(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Decode a frame and its ids (see `Reader.load`)."""
        split, _, row = frame.name.partition("/")
        rows = self.datasets_by_split[split]
        image = decode_cell(rows.select_columns(COLUMNS[0]), int(row), frame.image)
        label = decode_cell(rows.select_columns(COLUMNS[1]), int(row), frame.label)
        if len(label.getbands()) > 1:
            label = label.getchannel(0)
        return to_rgb(image, frame.image), to_ids(label, frame.label)


def saved_folder(cfg: DataConfig) -> Path:
    """Return the folder in `data.root`; raises ConfigError unless `save_to_disk` wrote it."""
    root = root_folder(cfg)
    if not any((root / name).is_file() for name in SAVE_TO_DISK_FILES):
        raise ConfigError(
            f"data.root: {cfg.root} has neither {' nor '.join(SAVE_TO_DISK_FILES)}; "
            "name a folder written by save_to_disk, or a hub id"
        )
    return root


def import_datasets() -> Any:
    """Import the module `datasets` on first use: it takes most of a second, and no other reader needs it."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(f"data.reader: hub needs the package datasets ({error}); install it") from None


def check_columns(location: str, features: Any, image_feature: type) -> None:
    """Raise ConfigError unless both columns exist and hold images."""
    if any(not isinstance(features.get(column), image_feature) for column in COLUMNS):
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise ConfigError(f"{location}: has the columns {found}; must have {' and '.join(COLUMNS)}, both images")


def hash_file_status(paths: list[str]) -> str:
    """Return the SHA-256 (hex) of the names, sizes and modification times of files."""
    status = [(Path(path).name, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(repr(status).encode()).hexdigest()


def decode_cell(column: Any, row: int, location: str) -> Image.Image:
    """Decode the image in one row of a data set with a single column; raises ConfigError naming the row."""
    try:
        image = next(iter(column[row].values()))
    except DECODING_ERRORS as error:
        raise decoding_error(location, error) from None
    if not isinstance(image, Image.Image):
        raise ConfigError(f"{location}: is empty, must hold an image; fill or drop the row")
    return image
