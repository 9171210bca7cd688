"""Check and fetch a model's initial weights: random, a shipped checkpoint, a folder or the hub.  Needs no torch."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fgseg.config.errors import ConfigError, check_name, one_line


@dataclass(frozen=True)
class Variant:
    """Sizes of a SegFormer (Xie et al. 2021, table 6): widths, depths and heads by stage, and the decoder's width."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    decoder: int


WIDE = (64, 128, 320, 512)
HEADS = (1, 2, 5, 8)
VARIANTS = {
    "small": Variant((16, 32, 64, 128), (1, 1, 1, 1), (1, 2, 4, 8), 64),
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), HEADS, 256),
    "b1": Variant(WIDE, (2, 2, 2, 2), HEADS, 256),
    "b2": Variant(WIDE, (3, 4, 6, 3), HEADS, 768),
    "b3": Variant(WIDE, (3, 4, 18, 3), HEADS, 768),
    "b4": Variant(WIDE, (3, 8, 27, 3), HEADS, 768),
    "b5": Variant(WIDE, (3, 6, 40, 3), HEADS, 768),
}
SHIPPED = {"streets": Path(__file__).parent / "streets"}
"""Folder of each checkpoint in this package by its value of `model.name`."""
NAMES = (*VARIANTS, *SHIPPED)
"""Values of `model.name` that are neither a path nor a hub id."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def is_folder(name: str) -> bool:
    """Return whether `model.name` means a folder and not a hub id."""
    return Path(name).exists() or name.startswith((".", "~", os.sep)) or not HUB_ID.fullmatch(name)


def check_weights(name: str, where: str = "model.name") -> None:
    """Check the name of a model without the network.

    Args:
        name: a variant, a shipped checkpoint, a folder or a hub id.
        where: setting or argument that holds the name, for messages.

    Raises:
        ConfigError: the name is none of these; a folder must hold a SegFormer's weights, a hub id be well-formed.
    """
    if name in NAMES:
        return
    folder = Path(name).expanduser()
    if os.sep not in name and not folder.exists():
        check_name(name, NAMES, f"{where}: no such model {name!r}, nor a folder or hub id of that name")
    if not is_folder(name):
        return
    if not folder.is_dir():
        raise ConfigError(f"{where}: no folder {name}; name a folder of weights, a hub id or one of {', '.join(NAMES)}")
    check_model_type(folder, name, where)
    if not any((folder / file).is_file() for file in WEIGHT_FILES):
        raise ConfigError(
            f"{where}: {name} has no weights; it must hold model.safetensors, as save_pretrained writes it"
        )


def check_model_type(folder: Path, name: str, where: str) -> None:
    """Raise ConfigError unless the `config.json` in a folder describes a SegFormer."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise ConfigError(f"{where}: {name} has no config.json; name a folder written by save_pretrained") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: the config.json of {name} cannot be read ({error}); fetch it again") from None
    if kind != "segformer":
        raise ConfigError(f"{where}: {name} is a model of type {kind}, must be a SegFormer; name another")


def fetch_weights(name: str, where: str = "model.name") -> Path | None:
    """Return the folder of a checkpoint that has a name; a hub id's model is downloaded into the hub cache.

    Args:
        name: a variant, a shipped checkpoint, a folder or a hub id.
        where: setting or argument that holds the name, for messages.

    Returns:
        The folder in this package or in the hub cache; None for a variant and for a folder.

    Raises:
        ConfigError: the hub cannot be reached, has no such model, or the model is not a SegFormer.
    """
    if name in VARIANTS or name in SHIPPED or is_folder(name):
        return SHIPPED.get(name)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except Exception as error:  # huggingface_hub raises many types, those of its HTTP client included
        reason = one_line(error, first_line=True)
        raise ConfigError(
            f"{where}: {name} is neither cached nor could it be fetched from the hub ({reason}); check the id and "
            "the network, name a folder of weights, or use b0 to start from random weights"
        ) from None
    check_model_type(folder, name, where)
    return folder
