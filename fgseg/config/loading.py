"""Read settings: layers from files, spaces and flags become one validated RunConfig."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fgseg.config.errors import ConfigError, check_name, explain
from fgseg.config.settings import RunConfig, flatten, nest


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
    known = RunConfig().flat()
    for key in merged:
        check_name(key, known, f"{origins[key]}: {key}: no such setting")
    try:
        run = RunConfig.model_validate(nest(merged))
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, origins)) from None
    if whole and not any(run.loss.model_dump().values()):
        raise ConfigError("loss: every weight is 0, at least one must be above 0; set loss.cross_entropy, for example")
    if run.data.reader != "streets" and run.data.root is None:
        raise ConfigError(
            f"data.root: got nothing, the reader {run.data.reader} needs a folder; add --set data.root=DIR"
        )
    return run


def check_processes(run: RunConfig, processes: int) -> None:
    """Raise ConfigError unless this number of processes can train one model with these settings."""
    if run.train.batch_size % processes:
        raise ConfigError(
            f"train.batch_size: got {run.train.batch_size}, must be a multiple of {processes}, as each of {processes} "
            "processes takes an equal part of every batch; change it, or the number of processes"
        )
    if processes > 1 and run.train.compile == "on":
        raise ConfigError(
            f"train.compile: got on, the step of {processes} processes is not compiled; use auto or one process"
        )


def read_layer(path: Path, skip: str | None = None) -> Layer:
    """Read the settings of a YAML file by dotted name, without the section `skip`.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    content = read_yaml(path)
    return Layer(str(path), flatten({k: v for k, v in content.items() if k != skip}))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; raises ConfigError if the file cannot be read or is not a mapping."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); name a YAML file"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", -1) + 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}:{line}: {problem}; a settings file is a YAML mapping") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: got {type(content).__name__}, must be a mapping of sections such as `train:`")
    return content


class StrictLoader(yaml.SafeLoader):
    """The safe loader of PyYAML; it also raises MarkedYAMLError for a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} is given twice", problem_mark=node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Parse YAML text.

    Raises:
        yaml.YAMLError: not YAML, or a key that is given twice.
        ValueError: a malformed date or number, or an anchor that contains itself.
    """
    content = yaml.load(text, StrictLoader)
    json.dumps(content, default=str, skipkeys=True)  # raises ValueError for an anchor that contains itself
    return content


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
