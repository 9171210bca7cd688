"""Match the classes of a checkpoint with those of a label set by their names.  Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from fgseg.config.settings import ModelConfig
from fgseg.labels import LabelSet
from fgseg.model.pretrained import check_weights, fetch_weights

ARCHITECTURE = "SegformerForSemanticSegmentation"
"""The architecture in `config.json` of a checkpoint with a segmentation head."""


def match_classes(names: Mapping[str, str], classes: LabelSet) -> list[int]:
    """Return the label of each class of a checkpoint.

    Args:
        names: `id2label` of a `config.json`.
        classes: the label set.

    Returns:
        For each id in ascending order the label of the class with the same name or alias, ignoring case, spaces and
        underscores; that of the background, or VOID in a set without background, for a name that no class has.
    """
    known = {plain_name(name): c.label for c in classes.classes for name in (c.name, c.key, *c.aliases)}
    return [known.get(plain_name(names[key]), classes.rest) for key in sorted(names, key=int)]


def plain_name(name: str) -> str:
    """Return a name in lower case without spaces and underscores."""
    return name.casefold().replace(" ", "").replace("_", "")


def checkpoint_labels(folder: Path, classes: LabelSet) -> list[int] | None:
    """Return the label of each class of a checkpoint, see `match_classes`.

    Returns:
        None if the model has no segmentation head, or no foreground class in common with the label set.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = match_classes(config.get("id2label") or {}, classes)
    shared = set(labels) & set(classes.foreground_labels)
    return labels if shared and ARCHITECTURE in (config.get("architectures") or ()) else None


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint; a hub id is downloaded.

    Raises:
        ConfigError: as `check_weights` and `fetch_weights`.
    """
    check_weights(name)
    return fetch_weights(name) or Path(name).expanduser()


def own_labels(model: ModelConfig, classes: LabelSet) -> list[int] | None:
    """Return the label of each class of the checkpoint from which a model starts, whatever head it gets.

    Args:
        model: the section `model`.
        classes: the label set.

    Returns:
        As `checkpoint_labels`; None also for a model with random weights.

    Raises:
        ConfigError: see `checkpoint_folder`.
    """
    return checkpoint_labels(checkpoint_folder(model.name), classes) if model.is_checkpoint else None


def inherited_labels(model: ModelConfig, classes: LabelSet) -> list[int] | None:
    """Return the labels of `own_labels` if a model inherits the head of its checkpoint, else None."""
    return own_labels(model, classes) if model.head == "inherit" else None


def new_head_note(model: ModelConfig, classes: LabelSet) -> str:
    """Return a line for the user if `model.head` is `inherit` and the checkpoint has nothing to inherit, else ""."""
    if model.head == "new" or not model.is_checkpoint or inherited_labels(model, classes) is not None:
        return ""
    return f"model.head: {model.name} has no segmentation class of these names, so that training begins with a new head"
