"""Label sets: the classes that a model tells apart, read from configs/labels/<name>.yaml or another YAML file."""

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from fgseg.config.errors import ConfigError, check_name
from fgseg.config.files import folders, list_configs, read_yaml

VOID = 255
"""Label of a pixel that is excluded from loss and metrics."""
MAX_CLASSES = 255
"""Classes of a label set, at most: labels are uint8, and VOID is none of them."""
GREY = (64, 64, 64)
"""Default colour of the background."""
RESERVED = ("void", "mean", "miou", "thin_mean", "thin_miou")
"""Keys that label tables and tables of scores use."""
FIELDS = ("background", "classes")
"""Fields of a label set."""
LABELS_FILE = "labels.yaml"
"""File of a data set for the folder reader, which may define a label set of its own."""
EXAMPLE = "`classes: [{name: background}, {name: pole, ids: [17], thin: true}]`"


@dataclass(frozen=True)
class SegClass:
    """One class."""

    label: int
    """Its value in label images, from 0."""
    name: str
    """Name in texts."""
    key: str
    """Name in settings and metrics."""
    colour: tuple[int, int, int]
    """RGB in [0, 255]."""
    ids: tuple[int, ...] = ()
    """Ids that mean this class: those of Cityscapes, which the procedural scenes use too, or those of the data set if
    its labels.yaml defines the class."""
    aliases: tuple[str, ...] = ()
    """Other names by which a checkpoint or a data set may call the class."""
    thin: bool = False
    """Whether its objects are thin: they cover few pixels and need strong colours in small figures."""


@dataclass(frozen=True)
class LabelSet:
    """The classes of a model in the order of their labels."""

    name: str
    classes: tuple[SegClass, ...]
    background: bool = True
    """Whether label 0 is the background, which holds every id without a class; without it such ids are void."""

    @property
    def foreground(self) -> tuple[SegClass, ...]:
        """The classes of the mIoU: all but the background."""
        return self.classes[int(self.background) :]

    @property
    def foreground_labels(self) -> range:
        """The labels of `foreground`, which are consecutive."""
        return range(int(self.background), len(self.classes))

    @property
    def thin(self) -> tuple[SegClass, ...]:
        """The classes of thin objects."""
        return tuple(c for c in self.foreground if c.thin)

    @property
    def num_classes(self) -> int:
        """Number of classes, with the background."""
        return len(self.classes)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all classes, in the order of their labels."""
        return tuple(c.key for c in self.classes)

    @property
    def rest(self) -> int:
        """Label of an id without a class: 0, or VOID in a set without background."""
        return 0 if self.background else VOID

    @property
    def rest_key(self) -> str:
        """Key of the class of `rest`, or "void"."""
        return self.classes[0].key if self.background else "void"

    @property
    def id2label(self) -> dict[int, str]:
        """Name by label, as in the `config.json` of a model of Transformers."""
        return {c.label: c.name for c in self.classes}

    def to_json(self) -> dict[str, Any]:
        """Return name, colour and `thin` of the classes as JSON types, which `parse_label_set` reads."""
        classes = [{"name": c.name, "colour": list(c.colour), "thin": c.thin} for c in self.classes]
        return {"background": self.background, "classes": classes}


Channel = Annotated[StrictInt, Field(ge=0, le=255)]


class ClassEntry(BaseModel):
    """Schema of one class in a YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[StrictStr, Field(pattern="[A-Za-z0-9]")]
    colour: tuple[Channel, Channel, Channel] | None = None
    ids: tuple[StrictInt, ...] = ()
    aliases: tuple[StrictStr, ...] = ()
    thin: StrictBool = False


RULES = {
    "name": "a name with a letter or digit",
    "colour": "three whole numbers in [0, 255], such as [70, 130, 180]",
    "ids": "a list of whole numbers",
    "aliases": "a list of names",
    "thin": "true or false",
}
"""What each field of a class accepts, for messages."""


def load_label_set(name: str) -> LabelSet:
    """Read a label set.

    Args:
        name: of a file in configs/labels/, without `.yaml`, or the path of a YAML file.

    Raises:
        ConfigError: there is no such file, or it is no valid label set.
    """
    path = find_label_set(name)
    return _read_cached(path, path.stat().st_mtime_ns)


def shipped_keys() -> set[str]:
    """Return the keys of the classes of all label sets in configs/labels/; raises ConfigError if one is wrong."""
    return {c.key for name in list_configs("labels") for c in load_label_set(name).classes}


def own_label_set(path: Path) -> LabelSet | None:
    """Return the label set that a data set's labels.yaml defines; None if it defines none, is empty or does not exist.

    Raises ConfigError if the file is no YAML, or the label set is wrong.
    """
    return _read_own(path, path.stat().st_mtime_ns) if path.is_file() and path.read_bytes().strip() else None


@lru_cache(maxsize=64)
def _read_own(path: Path, modified_ns: int) -> LabelSet | None:
    """Read the fields of a label set among the others of a labels.yaml."""
    own = {field: value for field, value in read_yaml(path).items() if field in FIELDS}
    return parse_label_set(own, path.absolute().parent.name, str(path)) if own else None


def find_label_set(name: str) -> Path:
    """Return the file of a label set, see `load_label_set`; raises ConfigError if there is none."""
    own = Path(expanduser(name))  # unlike Path.expanduser, leaves an unknown user alone
    shipped = [folder / "labels" / f"{name}.yaml" for folder in folders() if own.name == name]
    for path in (*shipped, own):
        if path.is_file():
            return path
    known = list_configs("labels")
    check_name(name, known, f"data.labels: no label set {name!r} in configs/labels, nor a file of that name")
    return known[name]


def portable_name(name: str) -> str:
    """Return a name for another working directory on this machine: a shipped name as it is, else the absolute path."""
    shipped = folders()[-1] / "labels" / f"{name}.yaml"
    return name if shipped.is_file() else str(find_label_set(name).resolve())


@lru_cache(maxsize=64)
def _read_cached(path: Path, modified_ns: int) -> LabelSet:
    """Read a file; a search builds its settings hundreds of times, each time with the label set."""
    return parse_label_set(read_yaml(path), path.stem, str(path))


def parse_label_set(content: Mapping[str, Any], name: str, where: str) -> LabelSet:
    """Check the content of a label set.

    Args:
        content: `classes`, a list of `ClassEntry`, and `background` (default: true): the first class is the background.
        name: of the set.
        where: the file, for messages.

    Raises:
        ConfigError: a wrong field, a name or id that is given twice, or no class beside the background.
    """
    for field in content:
        check_name(str(field), FIELDS, f"{where}: {field}: no such field")
    background, entries = content.get("background", True), content.get("classes")
    if not isinstance(background, bool):
        raise ConfigError(f"{where}: background: got {background!r}, must be true or false")
    if not isinstance(entries, list) or not int(background) < len(entries) <= MAX_CLASSES:
        got = f"{len(entries)} classes" if isinstance(entries, list) else repr(entries)
        counts = f"{1 + background} to {MAX_CLASSES}"
        raise ConfigError(f"{where}: classes: got {got}, must be a list of {counts} classes, as in {EXAMPLE}")
    parsed = [parse_class(entry, number, where) for number, entry in enumerate(entries, 1)]
    classes = tuple(
        SegClass(
            label=label,
            name=entry.name,
            key=key_of(entry.name),
            colour=entry.colour or (GREY if background and label == 0 else default_colour(label)),
            ids=entry.ids,
            aliases=entry.aliases,
            thin=entry.thin,
        )
        for label, entry in enumerate(parsed)
    )
    check_classes(classes, background, where)
    return LabelSet(name, classes, background)


def parse_class(entry: Any, number: int, where: str) -> ClassEntry:
    """Check the entry of one class, counted from 1; raises ConfigError."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: classes: entry {number} is {entry!r}, must be a mapping such as {{name: pole}}")
    shown = f"{where}: classes: {entry.get('name', f'entry {number}')}"
    for field in entry:
        check_name(str(field), RULES, f"{shown}: {field}: no such field")
    try:
        return ClassEntry.model_validate(entry)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        raise ConfigError(f"{shown}: {field}: got {entry.get(field)!r}, must be {RULES[field]}") from None


def check_classes(classes: Sequence[SegClass], background: bool, where: str) -> None:
    """Raise ConfigError if classes share a key, an id or an alias, one has a reserved name, or the background has ids.

    An alias may be a name of the same class.
    """
    for kind, values in (("name", [c.key for c in classes]), ("id", [i for c in classes for i in c.ids])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ConfigError(f"{where}: classes: the {kind} {twice[0]} is given twice; each class needs its own")
    owners: dict[str, str] = {c.key: c.name for c in classes}
    for c in classes:
        for alias in c.aliases:
            if owners.setdefault(key_of(alias), c.name) != c.name:
                raise ConfigError(
                    f"{where}: classes: {c.name} has the alias {alias}, which is another name of "
                    f"{owners[key_of(alias)]}; remove one of them"
                )
        if c.key in RESERVED:
            raise ConfigError(f"{where}: classes: {c.name} cannot be a class, the word means something else; rename it")
        if background and c.label == 0 and c.ids:
            raise ConfigError(
                f"{where}: classes: {c.name} has ids, but the first class holds every id without a class; remove them, "
                "or set `background: false`"
            )


def label_set_of(names: Iterable[str]) -> LabelSet:
    """Return the label set of a model that only names its classes: a shipped one of the same keys, or a plain one."""
    names = tuple(names)
    for name in list_configs("labels"):
        known = load_label_set(name)
        if known.keys == tuple(map(key_of, names)):
            return known
    background = key_of(names[0]) == "background"
    colours = [GREY if background and label == 0 else default_colour(label) for label in range(len(names))]
    plain = zip(names, colours, strict=True)
    classes = (SegClass(label, name, key_of(name), colour) for label, (name, colour) in enumerate(plain))
    return LabelSet("model", tuple(classes), background)


def key_of(name: str) -> str:
    """Return the key of a class name: lower case, with `_` in place of all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def display_name(key: str) -> str:
    """Return the name for texts of a class of which only the key is known: `traffic sign` for `traffic_sign`."""
    return key.replace("_", " ")


def default_colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class without one: hues a golden angle apart, in three levels of brightness."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.7, (0.95, 0.75, 0.55)[label % 3])
    return round(255 * red), round(255 * green), round(255 * blue)
