"""What the commands share: mistakes told in one line, and completion in the shell."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig

MISTAKE = 2
"""The exit code of a call that was refused before anything happened."""

Completer = Callable[..., Iterable[str]]
"""What argcomplete asks for the values of an option; it is called with `prefix` and `parsed_args`, among others."""


class Parser(argparse.ArgumentParser):
    """Tells mistakes in one line, and offers the values of its options where the shell asks for them."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def completers(self) -> dict[str, Completer]:
        """What offers the values of an option, by the option's name; files are offered for all others."""
        return {"set": lambda prefix, **asked: [f"{key}=" for key in RunConfig().flat()]}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the command line; raises ConfigError."""
        if "_ARGCOMPLETE" in os.environ:  # the shell wants completions and no run
            import argcomplete

            completers = self.completers()
            for action in self._actions:
                if action.dest in completers:
                    action.completer = completers[action.dest]  # type: ignore[attr-defined]
            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)


def format_os_error(error: OSError) -> str:
    """What the system, or a bucket, refused, in one line."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
