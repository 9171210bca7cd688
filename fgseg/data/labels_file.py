"""labels.yaml of the folder reader: where images and labels lie, and the class of each id or colour."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgseg.config.errors import ConfigError, check_name
from fgseg.config.files import read_yaml
from fgseg.data.image_files import to_ids, to_rgb
from fgseg.labels import VOID, LabelSet

FIELDS = ("images", "labels", "label_ending", "background", "classes", "ids", "colours", "rest")
"""Fields of the file; `config.label_sets` reads `background` and `classes`."""
UNNAMED = -1
"""Id of the pixels whose id or colour the file does not name, if it has `rest`."""
MAX_NAMED = 3
"""Colours that an error message names."""

Folders = dict[str, str]
"""Folder of each part of the data set: `train`, and `val` if the data set has one."""


@dataclass(frozen=True)
class LabelsFile:
    """The contents of labels.yaml."""

    path: Path
    images: str | Folders
    """One folder for all frames, which may hold train/ and val/, or a folder for each part."""
    labels: str | Folders
    """The same for the label images."""
    label_ending: str
    """End of a label's file name after the name of its image."""
    table: dict[int, int]
    """Label (a class's, or VOID) of each id, or of each colour as `code_of` returns it; of UNNAMED if it has a rest."""
    in_colours: bool
    rest_key: str
    """Value of `rest` that messages propose."""

    def ids_of(self, image: Image.Image, location: str) -> np.ndarray:
        """Return the ids of a label image: (H, W) integers, all of them in `table` unless there is no rest.

        Args:
            image: the decoded label.
            location: its file, for messages.

        Raises:
            ConfigError: the image has colours instead of ids, or a colour that is not in the file.
        """
        ids = codes_of(to_rgb(image, location)) if self.in_colours else to_ids(image, location)
        known = np.isin(ids, list(self.table))
        if UNNAMED in self.table:
            return np.where(known, ids.astype(np.int64), UNNAMED)
        if self.in_colours and not known.all():
            found = [str(list(colour_of(code))) for code in np.unique(ids[~known])]
            more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            listed = ", ".join(found[:MAX_NAMED]) + more
            raise ConfigError(
                f"{location}: has the colours {listed}, which are not in {self.path}; add them, or "
                f"`rest: {self.rest_key}`"
            )
        return ids


def read_labels_file(path: Path, classes: LabelSet) -> LabelsFile:
    """Read labels.yaml.

    Args:
        path: the file.
        classes: the label set, see `DataConfig.label_set`.

    Raises:
        ConfigError: the file is missing, has an unknown field or a wrong value, or gives no id or colour a class.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: is missing; write the class of each id into it, as in {example(classes)}; "
            f"`python -m fgseg.labels {path.parent}` prints a file to complete"
        )
    if not path.read_bytes().strip():
        raise ConfigError(
            f"{path}: is empty; `python -m fgseg.labels {path.parent}` prints a file to complete, as in "
            f"{example(classes)}"
        )
    content = read_yaml(path)
    for field in content:
        check_name(str(field), FIELDS, f"{path}: {field}: no such field")
    known = {name: c.label for c in classes.classes for name in (c.name, c.key)} | {"void": VOID}
    table = read_table(content, known, classes, path)
    if "rest" in content:
        check_name(str(content["rest"]), known, f"{path}: rest: {content['rest']} is not a class")
        table[UNNAMED] = known[str(content["rest"])]
    if not set(classes.foreground_labels) & set(table.values()):
        keys = ", ".join(c.key for c in classes.foreground)
        noun = "colour" if "colours" in content else "id"
        raise ConfigError(f"{path}: {noun}s: no {noun} means a class; name at least one of {keys}")
    return LabelsFile(
        path=path,
        images=read_folders(content, "images", path),
        labels=read_folders(content, "labels", path),
        label_ending=read_text(content, "label_ending", ".png", path),
        table=table,
        in_colours="colours" in content,
        rest_key=classes.rest_key,
    )


def read_table(content: Mapping[str, Any], known: Mapping[str, int], classes: LabelSet, path: Path) -> dict[int, int]:
    """Return the label of each id or colour that the file names; raises ConfigError."""
    own = {i: c.label for c in classes.classes for i in c.ids} if "classes" in content else {}
    if "colours" in content and ("ids" in content or own):
        raise ConfigError(f"{path}: has ids and colours, must have one of them; remove the other")
    field = "colours" if "colours" in content else "ids"
    entries = content.get(field, {} if own else None)
    if not isinstance(entries, dict) or not (entries or own):
        noun = field.removesuffix("s")
        raise ConfigError(
            f"{path}: {field}: got {entries!r}, must map each {noun} to a class, as in {example(classes)}"
        )
    read_key = read_colour if field == "colours" else read_id
    table = dict(own)
    for key, name in entries.items():
        number = read_key(key, path)
        check_name(str(name), known, f"{path}: {field}: {key}: {name} is not a class")
        table[number] = known[str(name)]
    return table


def example(classes: LabelSet) -> str:
    """Return a field of the file that maps ids to the classes of a label set, of which it names three at most."""
    named = [classes.rest_key, *(c.key for c in classes.foreground[:3])]
    return f"`ids: {{{', '.join(f'{number}: {key}' for number, key in enumerate(named))}}}`"


def read_id(key: Any, path: Path) -> int:
    """Return an id; raises ConfigError unless it is a whole number."""
    if isinstance(key, bool) or not isinstance(key, int):
        raise ConfigError(f"{path}: ids: got the id {key!r}, must be a whole number; correct it")
    return key


def read_colour(key: Any, path: Path) -> int:
    """Return the code of a colour given as text, `128, 0, 0` or `128 0 0`; raises ConfigError."""
    numbers = [int(number) for number in re.findall(r"\d+", str(key))]
    if len(numbers) != 3 or max(numbers) > 255 or not re.fullmatch(r"[\d\s,\[\]()]+", str(key)):
        raise ConfigError(f"{path}: colours: got {key!r}, must be red, green and blue in [0, 255], as in `128, 0, 0`")
    return code_of(numbers)


def read_folders(content: Mapping[str, Any], field: str, path: Path) -> str | Folders:
    """Return the folder, or the folders of train and val, in which images or labels lie; raises ConfigError."""
    given = content.get(field, field)
    if isinstance(given, dict):
        for part in given:
            check_name(str(part), ("train", "val"), f"{path}: {field}.{part}: no such part")
        if "train" not in given or not all(isinstance(folder, str) and folder for folder in given.values()):
            raise ConfigError(f"{path}: {field}: got {given!r}, must name the folder of train, and that of val if any")
        return dict(given)
    return read_text(content, field, field, path)


def read_text(content: Mapping[str, Any], field: str, default: str, path: Path) -> str:
    """Return a text of the file; raises ConfigError if it is something else."""
    given = content.get(field, default)
    if not isinstance(given, str) or not given:
        raise ConfigError(f"{path}: {field}: got {given!r}, must be text such as {default}")
    return given


def code_of(colour: Iterable[int]) -> int:
    """Return red * 65536 + green * 256 + blue of a colour, each in [0, 255]."""
    red, green, blue = colour
    return red * 65536 + green * 256 + blue


def colour_of(code: int) -> tuple[int, int, int]:
    """Return red, green and blue of a code; the inverse of `code_of`."""
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255


def codes_of(image: np.ndarray) -> np.ndarray:
    """Return the code of each pixel of an image (H, W, 3) uint8: (H, W) int32."""
    planes = image.astype(np.int32)
    return planes[..., 0] * 65536 + planes[..., 1] * 256 + planes[..., 2]
