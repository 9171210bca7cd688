"""Where configuration files are: ./configs first, then those shipped with the package."""

from pathlib import Path

from fgseg.config.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "_configs"
"""Package data of an installed copy; in a checkout it does not exist, and the repository's own configs/ serves."""


def folders() -> list[Path]:
    """The folders of configuration files, nearest first."""
    return [Path("configs"), SHIPPED if SHIPPED.is_dir() else Path(__file__).parents[2] / "configs"]


def find_config(name: str) -> Path:
    """A file below a configs folder, by its path there; raises ConfigError where there is none."""
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{name}: no such file in ./configs or in the package; name an existing YAML file")


def find_file(path: str) -> Path:
    """A configuration file: where its path says, else below the configs folders; raises ConfigError."""
    return Path(path) if Path(path).is_file() else find_config(path.removeprefix("configs/"))


def list_configs(group: str) -> dict[str, Path]:
    """The YAML files of one group by their stem, nearest folder winning; baseline first, then by the alphabet."""
    found = {path.stem: path for folder in reversed(folders()) for path in folder.glob(f"{group}/*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "baseline", item[0])))
