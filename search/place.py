"""Where a study lies that was begun before, for the commands that look after it: audit, sync, delete."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from fgseg.config import PATH_NAME, ConfigError
from search.ledger import Ledger

MODEL = "model"
"""The folder, in a study's, of the best trial's exported model."""


@dataclass(frozen=True)
class Place:
    """One study of one storage."""

    storage: Path
    """The folder of studies, absolute, links resolved."""
    study: str
    tracking_uri: str

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.storage / self.study

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.folder / 'study.db'}"

    def open_ledger(self) -> Ledger:
        """The study's ledger, to be read; raises ConfigError where there is no such study."""
        try:
            return Ledger(self.ledger_url, self.study)
        except LookupError:
            raise ConfigError(
                f"--study: no study {self.study} in {self.storage}; {offer(study_names(self.storage))}"
            ) from None


def find_place(storage: str | Path, study: str, tracking_uri: str | None = None) -> Place:
    """The place of a study by its names; `tracking_uri` defaults to the storage's own database.

    Raises:
        ConfigError: a name that cannot be a folder of the storage, or a storage that is not there.
    """
    folder = Path(storage).expanduser().resolve()
    if not PATH_NAME.fullmatch(study):
        raise ConfigError(
            f"--study: got {study!r}, must be letters, digits, dots, dashes and underscores (it names a folder)"
        )
    if not folder.is_dir():
        raise ConfigError(f"--storage: no folder {folder}; name the folder of studies")
    if (folder / study).resolve() != folder / study:
        raise ConfigError(f"--study: {study} leads out of {folder}; give the storage where it really is")
    return Place(folder, study, tracking_uri or f"sqlite:///{folder / 'mlflow.db'}")


def study_names(storage: Path) -> list[str]:
    """The studies of a storage."""
    return sorted(path.parent.name for path in storage.glob("*/study.db"))


def offer(names: list[str]) -> str:
    """The names that there are, as the end of an error."""
    return f"there are: {', '.join(names)}" if names else "there are none"


def add_place(parser: argparse.ArgumentParser) -> None:
    """The options that say which study is meant."""
    parser.add_argument("--study", metavar="NAME", required=True, help="name of the study")
    parser.add_argument("--storage", metavar="DIR", default="runs", help="folder of studies (default: runs)")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or database (default: <storage>/mlflow.db)"
    )


def place_from(options: argparse.Namespace) -> Place:
    """The place that the options of `add_place` name; raises ConfigError."""
    return find_place(options.storage, options.study, options.tracking_uri)


def confirm(question: str, yes: bool) -> bool:
    """Ask on the terminal, unless the answer was given with --yes; raises ConfigError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody can be asked here: {question}? add --yes to do it")
    return input(f"{question}? [y/N] ").strip().lower() in ("y", "yes")
