"""Find configuration files: in ./configs first, then among those shipped with the package."""

from pathlib import Path

from fgseg.config.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "_configs"
"""Package data of an installed copy. A checkout lacks it and uses the configs/ of the repository."""


def folders() -> list[Path]:
    """Return the folders of configuration files; earlier ones take precedence."""
    return [Path("configs"), SHIPPED if SHIPPED.is_dir() else Path(__file__).parents[2] / "configs"]


def find_config(name: str) -> Path:
    """Find a file by its path below a configs folder; raises ConfigError if there is none."""
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: no such file in ./configs or in the package; name an existing YAML file")


def find_file(path: str) -> Path:
    """Find a configuration file at its path, or else below the configs folders; raises ConfigError if there is none."""
    return Path(path) if Path(path).is_file() else find_config(path.removeprefix("configs/"))


def list_configs(group: str) -> dict[str, Path]:
    """List the YAML files of one group, such as `spaces`, by stem: `baseline` first, then in alphabetical order."""
    found = {path.stem: path for folder in reversed(folders()) for path in folder.glob(f"{group}/*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "baseline", item[0])))
