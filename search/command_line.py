"""What the commands of `search` share: completion of spaces, studies and settings of the search."""

from argparse import Namespace
from typing import Any, get_args

from fgseg.command_line import MISTAKE, Completer
from fgseg.command_line import Parser as FgsegParser
from fgseg.config import ConfigError
from fgseg.store import absolute, is_local
from search.config import SearchConfig
from search.space import list_spaces, load_space

__all__ = ["MISTAKE", "Parser"]


class Parser(FgsegParser):
    """Tells mistakes in one line, and offers the values of its options where the shell asks for them."""

    def completers(self) -> dict[str, Completer]:
        words = {name: field.annotation for name, field in SearchConfig.model_fields.items()}
        own: dict[str, Completer] = {n: offer(*get_args(a)) for n, a in words.items() if str in map(type, get_args(a))}
        spaces = offer(*list_spaces())
        own |= {"space": spaces, "spaces": spaces, "study": studies, "studies": studies}
        plain = super().completers()["set"]
        return own | {"set": lambda prefix, parsed_args, **asked: [*plain(prefix), *ranges(parsed_args)]}


def offer(*words: str) -> Completer:
    """Offers always the same words."""
    return lambda prefix, **asked: words


def studies(prefix: str, parsed_args: Namespace, **asked: Any) -> list[str]:
    """The studies of the storage that the line names so far."""
    from search.place import study_names

    storage = getattr(parsed_args, "storage", None) or "runs"
    return study_names(absolute(storage)) if is_local(storage) else []


def ranges(parsed_args: Namespace) -> list[str]:
    """The ends of the searched ranges, where the line names a space."""
    try:
        space = load_space(getattr(parsed_args, "space", None) or "")
    except ConfigError:
        return []
    return [f"search.{key}.{end}=" for key in space.search for end in ("low", "high")]
