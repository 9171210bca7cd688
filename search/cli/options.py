"""What the commands of `search` share: completion of spaces, studies and settings of the search."""

import argparse
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, get_args

from fgseg.cli import MISTAKE, Completer
from fgseg.cli import Parser as FgsegParser
from fgseg.config.errors import ConfigError
from fgseg.storage.store import absolute, is_local
from search.cli.signals import Interrupted, Signals
from search.study.config import SearchConfig
from search.study.location import StudyLocation, find_location, local_studies
from search.study.space import list_spaces, load_space

__all__ = ["MISTAKE", "Parser"]


class Parser(FgsegParser):
    """Tells mistakes in one line, and offers the values of its options where the shell asks for them."""

    def completers(self) -> dict[str, Completer]:
        words = {name: field.annotation for name, field in SearchConfig.model_fields.items()}
        own: dict[str, Completer] = {
            n: fixed_choices(*get_args(a)) for n, a in words.items() if str in map(type, get_args(a))
        }
        spaces = fixed_choices(*list_spaces())
        own |= {"space": spaces, "spaces": spaces, "study": study_choices, "studies": study_choices}
        plain = super().completers()["set"]
        return own | {"set": lambda prefix, parsed_args, **asked: [*plain(prefix), *range_choices(parsed_args)]}


def fixed_choices(*words: str) -> Completer:
    """Offers always the same words."""
    return lambda prefix, **asked: words


def study_choices(prefix: str, parsed_args: Namespace, **asked: Any) -> list[str]:
    """The studies of the storage that the line names so far."""
    storage = getattr(parsed_args, "storage", None) or "runs"
    return local_studies(absolute(storage)) if is_local(storage) else []


def range_choices(parsed_args: Namespace) -> list[str]:
    """The ends of the searched ranges, where the line names a space."""
    try:
        space = load_space(getattr(parsed_args, "space", None) or "")
    except ConfigError:
        return []
    return [f"search.{key}.{end}=" for key in space.search for end in ("low", "high")]


def add_search_options(parser: ArgumentParser) -> None:
    """The options of every command that runs trials: settings, where the studies are, what a trial gets."""
    add = parser.add_argument
    add("--config", default="configs/quickstart.yaml", metavar="FILE", help="settings in YAML (default: %(default)s)")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, or search.KEY.low of a range"
    )
    add("--storage", metavar="DIR", help="folder of studies, or s3://bucket/prefix (default: runs)")
    add(
        "--ledger-url",
        metavar="URL",
        help="postgresql:// database of a team's ledger (default: a file in the study's folder)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow server or database (default: <storage>/mlflow.db)")
    add("--ray-address", metavar="ADDR", help="Ray cluster to join (default: a private one on this machine)")
    add("--cpus-per-trial", type=float, metavar="N", help="processor cores of a trial (default: 1)")
    add(
        "--gpus-per-trial",
        type=float,
        metavar="N",
        help="GPUs of a trial: a fraction, or one for each process (default: 1 where there are any)",
    )
    add("--processes-per-trial", type=int, metavar="N", help="processes that train one model (default: one per GPU)")
    add("--max-concurrent", type=int, metavar="N", help="most trials at once (default: as many as fit)")
    add("--max-failures", type=int, metavar="N", help="restarts of a trial whose process died (default: 2)")
    add("--max-failed-trials", type=int, metavar="N", help="failures in a row that stop the run (default: 5)")
    add("--on-oom", metavar="WHAT", help="when memory runs out: fail (default), or halve the micro-batch and go on")
    add("--allow-changed-batch", action="store_true", default=None, help="let a trial with a halved batch be the best")
    add("--keep-checkpoints", type=int, metavar="K", help="keep the weights of the K best trials (default: 3)")
    add(
        "--accept-changes",
        action="store_true",
        default=None,
        help="continue a study with other settings, data or version",
    )


def search_settings(options: Namespace) -> dict[str, Any]:
    """The flags that are settings of the search, by name; None where not given."""
    return {name: value for name, value in vars(options).items() if name in SearchConfig.model_fields}


def run_command(work: Callable[[Signals], int]) -> int:
    """Carry out a command that runs trials, under signals; returns the exit code, mistakes being told in one line."""
    with Signals() as signals:
        try:
            return work(signals)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except Interrupted:
            print("interrupted before a trial ran; the same command starts again", file=sys.stderr)
            return signals.code


def add_location_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which study is meant."""
    parser.add_argument("--study", metavar="NAME", required=True, help="name of the study")
    parser.add_argument("--storage", metavar="DIR", default="runs", help="folder of studies (default: runs)")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or database (default: <storage>/mlflow.db)"
    )
    parser.add_argument(
        "--ledger-url", metavar="URL", help="database of the ledger (default: one in the study's folder)"
    )


def location_from(options: argparse.Namespace) -> StudyLocation:
    """The place that the options of `add_place` name; raises ConfigError."""
    return find_location(options.storage, options.study, options.tracking_uri, options.ledger_url)


def confirm(question: str, yes: bool) -> bool:
    """Ask on the terminal, unless the answer was given with --yes; raises ConfigError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody can be asked here: {question}? add --yes to do it")
    return input(f"{question}? [y/N] ").strip().lower() in ("y", "yes")
