"""Read settings: layers from files, spaces and flags become one validated RunConfig."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fgseg.config.errors import ConfigError, check_name, explain
from fgseg.config.files import load_yaml, read_yaml
from fgseg.config.settings import DataConfig, RunConfig, flatten, nest


@dataclass(frozen=True)
class Layer:
    """Settings by dotted name, and their file or flag for error messages."""

    origin: str
    values: Mapping[str, Any]


def build(layers: Sequence[Layer], whole: bool = True) -> RunConfig:
    """Merge layers of settings and validate the result.

    Args:
        layers: later layers override earlier ones.
        whole: False if more layers will follow, which may still give the loss a weight above 0.

    Raises:
        ConfigError: an unknown name (the message suggests the nearest), a wrong type or a value out of range.
    """
    merged = {key: value for layer in layers for key, value in layer.values.items()}
    origins = {key: layer.origin for layer in layers for key in layer.values}
    weights = {key for key in merged if key.startswith("class_weights.")}
    check_names(merged.keys() - weights, default_settings(), origins)
    # The label set, which decides the names of the weights, may itself be wrong: the other settings come first.
    run = validate({key: value for key, value in merged.items() if key not in weights}, origins)
    if weights:
        check_names(weights, run.flat(), origins)
        run = validate(merged, origins)
    if whole and not any(weight for name, weight in run.loss.weights.items() if name != "edge"):
        raise ConfigError(
            f"loss: every weight is 0{' besides that of edge' * (run.loss.edge > 0)}, at least one must be above 0; "
            "set loss.cross_entropy, for example"
        )
    if run.loss.edge and not run.label_set().thin:
        raise ConfigError(
            f"loss.edge: got {run.loss.edge:g}, must be 0 as data.labels={run.data.labels} has no thin classes; set it "
            "to 0, or mark classes of the label set by `thin: true`"
        )
    if run.data.reader != "streets" and run.data.root is None:
        raise ConfigError(
            f"data.root: got nothing, the reader {run.data.reader} needs a folder; add --set data.root=DIR"
        )
    check_crop(run.data)
    return run


@cache
def default_settings() -> dict[str, Any]:
    """Return the default of every setting by dotted name."""
    return RunConfig().flat()


def check_names(keys: Iterable[str], known: Iterable[str], origins: Mapping[str, str]) -> None:
    """Raise ConfigError for a name that is no setting; the message suggests the nearest one."""
    for key in sorted(keys, key=list(origins).index):
        if inner := next((name for name in known if name.startswith(f"{key}.")), None):
            raise ConfigError(f"{origins[key]}: {key}: is a section, must be a mapping of settings such as {inner}")
        check_name(key, known, f"{origins[key]}: {key}: no such setting")


def validate(settings: Mapping[str, Any], origins: Mapping[str, str]) -> RunConfig:
    """Validate settings by dotted name; raises ConfigError for a wrong type or a value out of range."""
    try:
        return RunConfig.model_validate(nest(settings))
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, origins)) from None


def check_crop(data: DataConfig) -> None:
    """Raise ConfigError unless `data.crop` fits into the frames and both divide into the logits of a SegFormer."""
    if data.crop is None:
        return
    got, frame = f"data.crop: got {data.crop}", f"{data.height}x{data.width}"
    if not re.fullmatch(r"\d{1,4}x\d{1,4}", data.crop):
        raise ConfigError(f"{got}, must read HEIGHTxWIDTH in pixels, such as --set data.crop={frame}")
    height, width = map(int, data.crop.split("x"))
    if not (MIN_CROP_PX <= height <= data.height and MIN_CROP_PX <= width <= data.width):
        raise ConfigError(f"{got}, its sides must be at least {MIN_CROP_PX} and at most those of the frames, {frame}")
    if any(side % CROP_STRIDE_PX for side in (height, width, data.height, data.width)):
        raise ConfigError(f"{got} of frames of {frame}, every side must be a multiple of {CROP_STRIDE_PX}")


MIN_CROP_PX = 32
"""Smallest side of a crop: the deepest stage of a SegFormer has a stride of 32 pixels."""
CROP_STRIDE_PX = 4
"""Divides every side where crops are used, so that the logits of overlapping windows coincide."""


def check_processes(run: RunConfig, processes: int) -> None:
    """Raise ConfigError unless this number of processes can train one model with these settings."""
    if run.train.batch_size % processes:
        raise ConfigError(
            f"train.batch_size: got {run.train.batch_size}, must be a multiple of {processes}, as each of {processes} "
            "processes takes an equal part of every batch; change it, or the number of processes"
        )


def read_layer(path: Path, skip: str | None = None) -> Layer:
    """Read the settings of a YAML file by dotted name, without the section `skip`.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    content = read_yaml(path)
    return Layer(str(path), flatten({k: v for k, v in content.items() if k != skip}))


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` texts with YAML values.

    Raises:
        ConfigError: a text without `=`, or a value that is not YAML.
    """
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: must read key=value, such as --set train.epochs=3")
        try:
            values[key.strip()] = load_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"--set {text}: the value is not YAML; quote it, as in --set '{key}=\"...\"'") from None
    return values


PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names that may become a folder: no slash, no leading dot, at most 100 characters."""
