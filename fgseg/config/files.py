"""Find configuration files, in ./configs first, then among those shipped with the package; read YAML."""

import json
from pathlib import Path
from typing import Any

import yaml

from fgseg.config.errors import ConfigError, nearest

INSTALLED = Path(__file__).parents[1] / "_configs"
"""Package data of an installed copy. A checkout lacks it and uses the configs/ of the repository."""
SHIPPED = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"


def folders() -> list[Path]:
    """Return the folders of configuration files; earlier ones take precedence."""
    return [Path("configs"), SHIPPED]


def find_config(name: str) -> Path:
    """Find a file by its path below a configs folder; raises ConfigError if there is none."""
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    known = sorted({path.name for folder in folders() for path in folder.glob("*.yaml")})
    raise ConfigError(f"{name or 'nothing'}: no such file in ./configs or in the package; {nearest(name, known)}")


def find_file(path: str) -> Path:
    """Find a configuration file at its path, or else below the configs folders; raises ConfigError if there is none."""
    if path and Path(path).is_dir():
        raise ConfigError(f"{path}: is a folder; name a YAML file")
    return Path(path) if Path(path).is_file() else find_config(path.removeprefix("configs/"))


def list_configs(group: str) -> dict[str, Path]:
    """List the YAML files of one group, such as `spaces`, by stem: `baseline` first, then in alphabetical order."""
    found = {path.stem: path for folder in reversed(folders()) for path in folder.glob(f"{group}/*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "baseline", item[0])))


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
        got = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path}: got {got}, must be a mapping of sections such as `train:`")
    return content


class StrictLoader(yaml.SafeLoader):
    """The safe loader of PyYAML; a list as a key is read as text, and a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        node.value = [(_as_text(key), value) for key, value in node.value]
        names = [key.value for key, _ in node.value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} is given twice", problem_mark=node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _as_text(key: yaml.Node) -> yaml.Node:
    """Turn a key that is a list, such as the colour `[128, 0, 0]`, into the text `128, 0, 0`."""
    if not isinstance(key, yaml.SequenceNode) or not all(isinstance(item, yaml.ScalarNode) for item in key.value):
        return key
    text = ", ".join(item.value for item in key.value)
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, key.start_mark, key.end_mark)


def load_yaml(text: str) -> Any:
    """Parse YAML text.

    Raises:
        yaml.YAMLError: not YAML, or a key that is given twice.
        ValueError: a malformed date or number, or an anchor that contains itself.
    """
    content = yaml.load(text, StrictLoader)
    json.dumps(content, default=str, skipkeys=True)  # raises ValueError for an anchor that contains itself
    return content
