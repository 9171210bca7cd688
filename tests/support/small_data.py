"""Small data sets in the layout of each reader, for the tests of fgseg.data: 40x80 frames that hold every class."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from fgseg.config.settings import DataConfig

SIZE = (40, 80)
CITYSCAPES_IDS = (7, 13, 26, 21, 17, 20, 19)
"""Road, which counts as background, then the ids of labels 1 to 6."""
FOLDER_IDS = (
    "ids: {50: background, 1: fence, 2: car, 3: vegetation, 4: pole, 5: traffic sign, 6: traffic_light, 255: void}"
)


def stripes(ids: tuple[int, ...] = CITYSCAPES_IDS) -> np.ndarray:
    """Seven stripes, one of each id: (40, 80) uint8."""
    return np.repeat(np.asarray(ids, np.uint8), 12)[:80][None].repeat(40, axis=0)


def noise(seed: int) -> np.ndarray:
    """A frame unlike any other: (40, 80, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def save(array: np.ndarray, path: Path) -> Path:
    """Write an image and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_cityscapes(root: Path, train: int = 6, val: int = 6) -> Path:
    """The official layout, two cities, frames as .png and .jpg in turn."""
    for part, count in (("train", train), ("val", val)):
        for i in range(count):
            city, ending = f"city{i % 2}", ("png", "jpg")[i % 2]
            save(noise(i + 100 * (part == "val")), root / "leftImg8bit" / part / city / f"f{i}_leftImg8bit.{ending}")
            save(stripes(), root / "gtFine" / part / city / f"f{i}_gtFine_labelIds.png")
    return root


def write_folder(root: Path, count: int = 12) -> Path:
    """images/ and labels/ with mirrored subfolders, and the id table."""
    for i in range(count):
        save(noise(i), root / "images" / f"walk{i % 2}" / f"f{i}.png")
        save(stripes((50, 1, 2, 3, 4, 5, 6)), root / "labels" / f"walk{i % 2}" / f"f{i}.png")
    root.mkdir(exist_ok=True)
    (root / "labels.yaml").write_text(FOLDER_IDS)
    return root


def write_hub(
    root: Path, heldout: str = "validation", columns: tuple[str, str] = ("image", "semantic_segmentation")
) -> Path:
    """A saved DatasetDict with labels of three channels, of which only the first holds ids."""

    def rows(first: int) -> datasets.Dataset:
        colours = np.dstack([stripes(), np.full(SIZE, 99, np.uint8), np.full(SIZE, 77, np.uint8)])
        images = [Image.fromarray(noise(first + i)) for i in range(6)]
        features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
        cells = (images, [Image.fromarray(colours)] * 6)
        return datasets.Dataset.from_dict(dict(zip(columns, cells, strict=True)), features=features)

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": rows(0), heldout: rows(100)}).save_to_disk(str(root))
    return root


def settings(reader: str, root: Path | None, cache: Path, **others: object) -> DataConfig:
    """Six train, two val and two test frames at the frames' own size."""
    counts = {"train": 6, "val": 2, "test": 2, "height": SIZE[0], "width": SIZE[1]}
    return DataConfig.model_validate(
        {"reader": reader, "root": None if root is None else str(root), "cache": str(cache)} | counts | others
    )


def make(reader: str, tmp_path: Path) -> DataConfig:
    """The settings of one reader, its small data written."""
    writers = {"cityscapes": write_cityscapes, "folder": write_folder, "hub": write_hub}
    root = writers[reader](tmp_path / "data") if reader in writers else None
    return settings(reader, root, tmp_path / "cache")


def run_python(code: str, **environment: str) -> str:
    """The output of a fresh interpreter; if it fails, so does the test, with the end of its errors."""
    project = str(Path(__file__).parents[2])
    variables = os.environ | {"PYTHONPATH": project} | environment
    ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, f"exit code {ended.returncode}: {ended.stderr[-4000:]}"
    return ended.stdout
