"""Approach families as data: configs/spaces/<family>.yaml -> Space -> the settings of a trial."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from fgseg.config.errors import ConfigError, check_name, explain
from fgseg.config.files import find_config, list_configs
from fgseg.config.loading import Layer, build, read_yaml
from fgseg.config.settings import RunConfig, Section, flatten

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


UNSEARCHABLE = ("train.epochs", "train.seed")
"""Settings that must be alike in all trials of a study, beside the section `data`."""


class Range(Section):
    """One searched setting: its interval, how it is drawn, and the source's own value."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether values are drawn evenly in the logarithm."""
    start: float
    """The source's value; trial 0 has it."""


class SpaceFile(Section):
    """The form of a file in configs/spaces/."""

    title: str
    """What people read in tables."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Settings of the family that are not searched."""
    search: dict[str, Range] = Field(default_factory=dict)
    """Searched settings."""


@dataclass(frozen=True)
class Space:
    """One approach family: what is fixed, what is searched."""

    name: str
    title: str
    fixed: dict[str, Any]
    search: dict[str, Range]

    @property
    def start(self) -> dict[str, float | int]:
        """The source's own point, which is trial 0."""
        return {key: self.value(key, r.start) for key, r in self.search.items()}

    def value(self, key: str, number: float) -> float | int:
        """A number as the setting wants it: whole where the setting is whole."""
        return int(number) if is_whole(key) else float(number)

    def distributions(self) -> "dict[str, BaseDistribution]":
        """The searched settings as Optuna distributions, by dotted name."""
        from optuna.distributions import FloatDistribution, IntDistribution

        return {
            key: IntDistribution(int(r.low), int(r.high), log=r.log)
            if is_whole(key)
            else FloatDistribution(r.low, r.high, log=r.log)
            for key, r in self.search.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The name and the ranges as JSON types, for the study's identity; what is fixed is among its settings."""
        return {
            "name": self.name,
            "search": {key: r.model_dump() for key, r in self.search.items()},
        }


def is_whole(key: str) -> bool:
    """Whether a setting takes whole numbers only."""
    return isinstance(RunConfig().flat()[key], int)


def list_spaces() -> dict[str, Path]:
    """Every space by name: those of ./configs/spaces, then those that the package ships."""
    return list_configs("spaces")


def load_space(name: str) -> Space:
    """Read a space by name.

    Raises:
        ConfigError: no such space, an unknown setting in it, or a range that does not hold together.
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
    space = Space(name, parsed.title, dict(parsed.fixed), dict(parsed.search))
    return check_space(space, str(path))


def nest_ranges(ranges: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Bring `loss: {ssim: {low: ...}}` and `loss.ssim: {low: ...}` into the second form."""
    grouped: dict[str, dict[str, Any]] = {}
    for dotted, value in flatten(ranges).items():
        key, _, part = dotted.rpartition(".")
        grouped.setdefault(key, {})[part] = value
    return grouped


def override(space: Space, assignments: Mapping[str, Any]) -> tuple[Space, dict[str, Any]]:
    """Apply `--set`: a range is changed by search.<key>.<part>; a searched setting that is set leaves the search.

    Returns:
        The changed space, and the assignments that concern plain settings.
    """
    ranges = {k.removeprefix("search."): v for k, v in assignments.items() if k.startswith("search.")}
    plain = {k: v for k, v in assignments.items() if not k.startswith("search.")}
    search = {key: r.model_dump() for key, r in space.search.items() if key not in plain}
    for dotted, value in ranges.items():
        key, _, part = dotted.rpartition(".")
        check_name(key, search, f"--set search.{dotted}: {key or dotted} is not searched by {space.name}")
        check_name(part, Range.model_fields, f"--set search.{dotted}: a range has no {part}")
        search[key][part] = value
    try:
        parsed = SpaceFile.model_validate({"title": space.title, "search": search})
    except ValidationError as error:
        raise ConfigError(f"--set {explain(error, SpaceFile, {})}") from None
    fixed = {key: value for key, value in space.fixed.items() if key not in plain}
    return check_space(replace(space, fixed=fixed, search=dict(parsed.search)), f"space {space.name}"), plain


def check_space(space: Space, origin: str) -> Space:
    """Return the space if its settings exist and its ranges hold together; raise ConfigError otherwise."""
    known = RunConfig().flat()
    for key, r in space.search.items():
        where = f"{origin}: search.{key}"
        check_name(key, known, f"{where}: no such setting")
        if key.startswith("data.") or key in UNSEARCHABLE:
            raise ConfigError(f"{where}: trials that differ in it cannot be compared; fix it under `fixed` instead")
        if is_whole(key) and not all(float(end).is_integer() for end in (r.low, r.high, r.start)):
            raise ConfigError(f"{where}: got {r.low:g} to {r.high:g} from {r.start:g}, must be whole numbers")
        if not isinstance(known[key], int | float):
            raise ConfigError(f"{where}: only numbers can be searched; fix it under `fixed` instead")
        if not r.low < r.high:
            raise ConfigError(f"{where}: got low {r.low:g} and high {r.high:g}, low must be below high")
        if r.log and r.low <= 0:
            raise ConfigError(f"{where}.low: got {r.low:g}, must be above 0 where log is true")
        if not r.low <= r.start <= r.high:
            raise ConfigError(f"{where}.start: got {r.start:g}, must be in [{r.low:g}, {r.high:g}]")
    for end in ("low", "high"):
        point = {key: space.value(key, getattr(r, end)) for key, r in space.search.items()}
        build([Layer(f"{origin}: fixed", space.fixed), Layer(f"{origin}: search ({end})", point)])
    return space
