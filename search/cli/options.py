"""Options of the search commands: flags generated from the settings, flags that locate a study, and completion."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fgseg.cli import Completer
from fgseg.cli import Parser as FgsegParser
from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.storage.store import absolute, is_local
from search.study.config import SearchConfig
from search.study.location import StudyLocation, find_location, local_studies
from search.study.space import list_spaces, load_space

LOCATION = ("storage", "tracking_uri", "ledger_url")
"""Settings that locate a study."""
FLAGS = {"register_model": "--no-register"}
"""Flags that are not named after their setting."""


class Parser(FgsegParser):
    """A parser that also completes spaces, studies, ranges and settings with a fixed set of values."""

    def completers(self) -> dict[str, Completer]:
        """Return the completer of each option by its name."""
        own = {name: fixed_choices(*found) for name, f in SearchConfig.model_fields.items() if (found := choices(f))}
        spaces = fixed_choices(*list_spaces())
        own |= {"space": spaces, "spaces": spaces}
        own |= dict.fromkeys(("study", "studies", "warm_start"), study_choices)
        plain = super().completers()["set"]
        return own | {"set": lambda prefix, parsed_args, **context: [*plain(prefix), *range_choices(parsed_args)]}


def fixed_choices(*words: str) -> Completer:
    """Return a completer that always offers the same words."""
    return lambda prefix, **context: words


def study_choices(prefix: str, parsed_args: Namespace, **context: Any) -> list[str]:
    """List the studies of the local storage in the parsed options; empty for s3://."""
    storage = getattr(parsed_args, "storage", None) or SearchConfig().storage
    return local_studies(absolute(storage)) if is_local(storage) else []


def range_choices(parsed_args: Namespace) -> list[str]:
    """List the bounds of the searched ranges if the command line names a space."""
    try:
        space = load_space(getattr(parsed_args, "space", None) or "", DataConfig())
    except ConfigError:
        return []
    return [f"search.{key}.{end}=" for key in space.search for end in ("low", "high")]


def add_search_options(
    parser: ArgumentParser,
    settings: type[BaseModel] = SearchConfig,
    only: Iterable[str] = (),
    without: Iterable[str] = (),
) -> None:
    """Add a flag for each setting: `max_concurrent` becomes --max-concurrent, its docstring the help text.

    A flag that is not given is None.

    Args:
        parser: receives the flags.
        settings: the model whose fields become flags.
        only: names of the settings to add; by default all.
        without: names of settings to leave out.
    """
    text = (
        None if only else "A flag overrides the section `search` of --config; a default holds if neither gives a value."
    )
    group = parser.add_argument_group("settings of the study", text)
    for name in only or settings.model_fields:
        if name not in tuple(without):
            flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
            group.add_argument(flag, dest=name, **flag_options(name, settings.model_fields[name]))


def flag_options(name: str, field: FieldInfo) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a setting; if it defaults to True, an off switch."""
    text = help_text(field)
    if field.annotation is bool:
        action, prefix = ("store_false", "do not ") if field.default else ("store_true", "")
        return {"action": action, "default": None, "help": prefix + text}
    if get_origin(field.annotation) is tuple:
        return {"nargs": "+", "metavar": "NAME", "help": text}
    kind = next((k for k in (int, float) if k in (field.annotation, *get_args(field.annotation))), str)
    if words := choices(field):
        text, metavar = f"{', '.join(words)}: {text}", "NAME"
    else:
        metavar = "DIR" if name == "storage" else "N" if kind is not str else name.rpartition("_")[2].upper()
    shown = "" if field.default is None else f" (default: {field.default})"
    return {"type": kind, "metavar": metavar, "help": text + shown}


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a Literal setting accepts; empty for other settings."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def help_text(field: FieldInfo) -> str:
    """Return the docstring of a setting in the style of argparse: no capital at the start, no full stop."""
    text = " ".join((field.description or "").split()).removesuffix(".").replace("%", "%%")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def search_settings(options: Namespace) -> dict[str, Any]:
    """Return the given flags that are settings of the search, by the setting's name; None where not given."""
    return {name: value for name, value in vars(options).items() if name in SearchConfig.model_fields}


def add_location_options(parser: ArgumentParser) -> None:
    """Add --study, --storage, --tracking-uri and --ledger-url."""
    parser.add_argument("--study", metavar="NAME", required=True, help="name of the study")
    add_search_options(parser, SearchConfig, only=LOCATION)


def location_from(options: Namespace) -> StudyLocation:
    """Return the study's location from the flags of `add_location_options`; raises ConfigError."""
    storage = SearchConfig().storage if options.storage is None else options.storage
    return find_location(storage, options.study, options.tracking_uri, options.ledger_url)


def confirm(question: str, yes: bool) -> bool:
    """Ask a yes-or-no question; returns True without asking if `yes`.  Ctrl-D means no.

    Raises ConfigError without a terminal.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"standard input is no terminal, cannot ask: {question}? add --yes to do it")
    try:
        answer = input(f"{question}? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")
