"""What several tests share: small settings, and places that are theirs alone."""

from pathlib import Path
from typing import Any

import pytest

from fgseg.config import Layer, RunConfig, build

TINY = {
    "data.height": 64,
    "data.width": 128,
    "data.train": 6,
    "data.val": 4,
    "data.test": 4,
    "train.epochs": 3,
    "train.lr": 3e-3,
    "loss.ssim": 0.4,
    "loss.soft_iou": 0.5,
    "copy_paste.prob": 0.5,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of decoded frames, never the user's own."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(cache: str):
    """A run of three epochs on six scenes of 64x128; keyword arguments `section__name` change settings."""

    def make(**changes: Any) -> RunConfig:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return build([Layer("tiny", TINY | {"data.cache": cache} | changes)])

    return make


@pytest.fixture
def shared() -> Path:
    """The folder of real frames and weights beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).parent.parent.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the real frames are not on this machine")
    return folder
