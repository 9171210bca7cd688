"""Read, change and check search spaces: configs/spaces/<family>.yaml -> Space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from fgseg.config.errors import ConfigError, check_name, explain
from fgseg.config.files import find_config, list_configs, read_yaml
from fgseg.config.label_sets import shipped_keys
from fgseg.config.loading import Layer, build, default_settings
from fgseg.config.settings import DataConfig, RunConfig, Section, flatten
from fgseg.labels import LabelSet
from search.study.config import SearchConfig

UNSEARCHABLE = ("train.epochs", "train.seed")
"""Settings that must be the same in all trials of a study, besides the section `data`."""
NUMBERS_WITHOUT_DEFAULT = ("model.drop_path",)
"""Settings that take numbers although their default is nothing."""
SAMPLING = ("data.rare_class_temperature",)
"""Settings of the section `data` that may differ between trials, since they do not change the validation frames."""

BASELINE = "baseline"
"""Space of the family with which others are compared."""
WEIGHT, THIN = "class_weights.", "class_weights.<thin>"
"""Prefix of the weights of classes, and the name that stands for those of all thin classes."""
Value = TypeVar("Value")


class Range(Section):
    """Range of one searched setting."""

    low: float
    """Smallest value, inclusive."""
    high: float
    """Largest value, inclusive."""
    log: bool = False
    """Whether values are sampled uniformly in the logarithm."""
    start: float
    """Value of trial 0: the value of the family's source."""
    off_below: float | None = None
    """Values below it count as 0, which switches the setting off; `start` may then be 0. By default none do."""

    def value(self, number: float) -> float:
        """Return the number, or 0 if it is below `off_below`."""
        return 0.0 if self.off_below is not None and number < self.off_below else number

    def contains(self, value: float) -> bool:
        """Return whether a trial of this range may have the value."""
        return self.low <= value <= self.high or self.is_off(value)

    def is_off(self, value: float) -> bool:
        """Return whether the value switches the setting off."""
        return value == 0 and self.off_below is not None

    def position(self, value: float) -> float:
        """Return where a value lies on the axis of the range: `low` for a setting that is off, else the value."""
        return self.low if self.is_off(value) else value

    def share(self, value: float) -> float:
        """Return where a value lies in the range, or in its logarithm, in [0, 1]; one outside of it is clipped."""
        scale, inside = math.log if self.log else float, min(max(value, self.low), self.high)
        return (scale(inside) - scale(self.low)) / (scale(self.high) - scale(self.low))


class SpaceFile(Section):
    """Schema of a file in configs/spaces/."""

    title: str
    """Name of the family in tables."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Settings of the family that are not searched, by dotted name."""
    search: dict[str, Range] = Field(default_factory=dict)
    """Searched settings by dotted name."""


@dataclass(frozen=True)
class Space:
    """Search space of one family: fixed settings, and ranges of searched settings, by dotted name."""

    name: str
    title: str
    fixed: dict[str, Any]
    search: dict[str, Range]

    @property
    def start(self) -> dict[str, float | int]:
        """Start point, which is trial 0, by dotted name."""
        return {key: self.value(key, r.start) for key, r in self.search.items()}

    @property
    def off_below(self) -> dict[str, float]:
        """Values below which searched settings count as 0, by dotted name; settings without such a value are absent."""
        return {key: r.off_below for key, r in self.search.items() if r.off_below is not None}

    def value(self, key: str, number: float) -> float | int:
        """Return the value of a setting at a number of its range: an int if it takes whole numbers only."""
        value = self.search[key].value(number)
        return int(value) if is_whole(key) else float(value)

    def nearest(self, point: Mapping[str, float | int]) -> dict[str, float | int]:
        """Return the point of the space nearest to any point, whose missing settings have the values of the start."""
        inside = {}
        for key, r in self.search.items():
            value = point.get(key, r.start)
            inside[key] = self.value(key, value if r.contains(value) else min(max(value, r.low), r.high))
        return inside

    def to_json(self) -> dict[str, Any]:
        """Return name and ranges as JSON types for the study's identity, which contains fixed settings elsewhere."""
        return {
            "name": self.name,
            "search": {key: r.model_dump() for key, r in self.search.items()},
        }


def is_about_frames(key: str) -> bool:
    """Return whether a setting decides what the frames are, so that trials which differ in it cannot be compared."""
    return key.startswith("data.") and key not in SAMPLING


def is_whole(key: str) -> bool:
    """Return whether a setting takes whole numbers only."""
    return isinstance(default_settings().get(key), int)


def list_spaces() -> dict[str, Path]:
    """Return the file of every space by name; a file in ./configs/spaces overrides one in the package."""
    return list_configs("spaces")


def load_space(name: str, data: DataConfig) -> Space:
    """Read a space by name.

    Args:
        name: of the space.
        data: the section `data` of the settings; its label set decides to which classes `class_weights.<thin>` refers.

    Raises:
        ConfigError: the space does not exist, or has an unknown setting or an invalid range.
    """
    check_name(name, list_spaces(), f"no search space {name!r} in configs/spaces")
    path = find_config(f"spaces/{name}.yaml")
    content = read_yaml(path)
    ranges = content.get("search") or {}
    content["search"] = nest_ranges(ranges) if isinstance(ranges, Mapping) else ranges
    fixed = content.get("fixed") or {}
    content["fixed"] = flatten(fixed) if isinstance(fixed, Mapping) else fixed
    try:
        parsed = SpaceFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, SpaceFile, {})}") from None
    classes = data.label_set()
    fixed, search = (expand_thin(entries, classes) for entries in (parsed.fixed, parsed.search))
    return check_space(Space(name, parsed.title, fixed, search), data, str(path))


def expand_thin(entries: Mapping[str, Value], classes: LabelSet) -> dict[str, Value]:
    """Replace `class_weights.<thin>` by an entry for each thin class.

    Args:
        entries: anything by the dotted name of a setting.  An entry of a single class overrides that of `<thin>`; it is
            left out if the label set lacks the class and a shipped one has it, so that a family fits every label set.
        classes: the label set.

    Returns:
        The entries, those of the thin classes in the order of the labels in place of `<thin>`.
    """
    own = {f"{WEIGHT}{c.key}" for c in classes.classes}
    elsewhere = {f"{WEIGHT}{key}" for key in shipped_keys()} - own
    expanded: dict[str, Value] = {}
    for key, entry in entries.items():
        if key == THIN:
            expanded |= {f"{WEIGHT}{c.key}": entries.get(f"{WEIGHT}{c.key}", entry) for c in classes.thin}
        elif key not in elsewhere:
            expanded.setdefault(key, entry)
    return expanded


def add_ranges(space: Space, ranges: Any, data: DataConfig, origin: str) -> Space:
    """Add the searched settings of a configuration file to a space.

    Args:
        space: not changed.
        ranges: content of the section `search.space`: a mapping of settings, nested or by dotted name, to ranges.
        data: the section `data` of the settings.
        origin: the file, for messages.

    Returns:
        The space; where it has the same setting, the range of the file replaces that of the family.

    Raises:
        ConfigError: not a mapping, an unknown setting, or an invalid range.
    """
    if not isinstance(ranges, Mapping):
        raise ConfigError(f"{origin}: search.space: got {ranges!r}, must be a mapping of settings to ranges")
    try:
        added = SpaceFile.model_validate({"title": space.title, "search": nest_ranges(ranges)}).search
    except ValidationError as error:
        mistake = explain(error, SpaceFile, {}).removeprefix("search.")
        raise ConfigError(f"{origin}: search.space.{mistake}") from None
    added = expand_thin(added, data.label_set())
    fixed = {key: value for key, value in space.fixed.items() if key not in added}
    return check_space(replace(space, fixed=fixed, search=space.search | added), data, origin, "search.space")


def nest_ranges(ranges: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert nested ranges, `loss: {ssim: {low: ...}}`, to ranges by dotted name, `loss.ssim: {low: ...}`."""
    grouped: dict[str, dict[str, Any]] = {}
    for dotted, value in flatten(ranges).items():
        key, _, part = dotted.rpartition(".")
        grouped.setdefault(key, {})[part] = value
    return grouped


def override(space: Space, assignments: Mapping[str, Any], data: DataConfig) -> tuple[Space, dict[str, Any]]:
    """Apply the assignments of `--set` to a space.

    Args:
        space: not changed.
        assignments: values by dotted name.  `search.<key>.<part>` changes a range; a searched setting is fixed.
        data: the section `data` of the settings.

    Returns:
        The changed space, and the assignments of settings.

    Raises:
        ConfigError: the setting of a range is not searched, or a range becomes invalid.
    """
    ranges = {k.removeprefix("search."): v for k, v in assignments.items() if k.startswith("search.")}
    plain = {k: v for k, v in assignments.items() if not k.startswith("search.")}
    search = {key: r.model_dump() for key, r in space.search.items() if key not in plain}
    for dotted, value in ranges.items():
        named, _, part = dotted.rpartition(".")
        if dotted in space.search or dotted == THIN:
            raise ConfigError(f"--set search.{dotted}: is a range; name a part, such as search.{dotted}.high=...")
        if not named:
            flag = f"--{dotted.replace('_', '-')}"
            known = dotted in SearchConfig.model_fields
            hint = f"use the flag {flag}" if known else "ranges read search.<setting>.<part>"
            raise ConfigError(f"--set search.{dotted}: is no range of {space.name}; {hint}")
        for key in expand_thin({named: part}, data.label_set()):
            if key in plain:
                raise ConfigError(f"--set search.{dotted}: --set {key}=... fixes the setting; give one of the two")
            check_name(key, search, f"--set search.{dotted}: {key or dotted} is not searched by {space.name}")
            check_name(part, Range.model_fields, f"--set search.{dotted}: a range has no {part}")
            search[key][part] = value
    try:
        parsed = SpaceFile.model_validate({"title": space.title, "search": search})
    except ValidationError as error:
        raise ConfigError(f"--set {explain(error, SpaceFile, {})}") from None
    fixed = {key: value for key, value in space.fixed.items() if key not in plain}
    return check_space(replace(space, fixed=fixed, search=dict(parsed.search)), data, f"space {space.name}"), plain


def check_space(space: Space, data: DataConfig, origin: str, section: str = "search") -> Space:
    """Return the space unchanged; raise ConfigError for an unknown setting or an invalid range.

    Args:
        space: to be checked.
        data: the section `data` of the settings.
        origin: file or flag, for messages.
        section: section of the file that holds the ranges, for messages.
    """
    known = RunConfig(data=data).flat()
    for key, r in space.search.items():
        where = f"{origin}: {section}.{key}"
        check_name(key, known, f"{where}: no such setting")
        if key in UNSEARCHABLE or is_about_frames(key):
            raise ConfigError(f"{where}: trials that differ in it cannot be compared; fix it under `fixed` instead")
        if is_whole(key) and not all(float(end).is_integer() for end in (r.low, r.high, r.start)):
            raise ConfigError(f"{where}: got {r.low:g} to {r.high:g} from {r.start:g}, must be whole numbers")
        if not isinstance(known[key], int | float) and key not in NUMBERS_WITHOUT_DEFAULT:
            raise ConfigError(f"{where}: only numbers can be searched; fix it under `fixed` instead")
        if not r.low < r.high:
            raise ConfigError(f"{where}: got low {r.low:g} and high {r.high:g}, low must be below high")
        if r.log and r.low <= 0:
            raise ConfigError(f"{where}.low: got {r.low:g}, must be above 0 where log is true")
        if r.off_below is not None and not r.low < r.off_below <= r.high:
            raise ConfigError(f"{where}.off_below: got {r.off_below:g}, must be in ({r.low:g}, {r.high:g}]")
        if not r.low <= r.start <= r.high and not (r.start == 0 and r.off_below is not None):
            raise ConfigError(f"{where}.start: got {r.start:g}, must be in [{r.low:g}, {r.high:g}]")
    base = Layer("data", {f"data.{key}": value for key, value in data.model_dump().items()})
    for end in ("low", "high"):
        point = {key: space.value(key, getattr(r, end)) for key, r in space.search.items()}
        build([base, Layer(f"{origin}: fixed", space.fixed), Layer(f"{origin}: {section} ({end})", point)])
    return space
