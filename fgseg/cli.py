"""Shared by every command: exit codes, errors in one line, the parser, and completion in the shell."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from fgseg.config.errors import ConfigError, FaultError
from fgseg.config.settings import RunConfig
from fgseg.garbage import collect_seldom

DONE = 0
"""Exit code: the command did what was asked."""
FAULT = 1
"""Exit code: a file, database, server or training failed, a check found errors, or the user answered no."""
MISTAKE = 2
"""Exit code: the command line or a setting is wrong; nothing was written."""
INTERRUPTED = 130
"""Exit code: stopped by SIGINT (Ctrl-C)."""
TERMINATED = 143
"""Exit code: stopped by SIGTERM."""

Parse = Callable[[Sequence[str] | None], argparse.Namespace]
"""Reads a command line, by default `sys.argv`; raises ConfigError."""
Completer = Callable[..., Iterable[str]]
"""Returns the values of an option. argcomplete calls it with `prefix`, `parsed_args` and other keywords."""


def run_command(
    parse: Parse,
    command: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
    interrupted: str = "interrupted",
) -> int:
    """Parse a command line and run the command; print an error as one line on standard error.

    The garbage collector runs less often afterwards, see `collect_seldom`.

    Args:
        parse: reads the command line.
        command: does the work and returns the exit code.
        arguments: the command line without the program; None for `sys.argv`.
        interrupted: printed after Ctrl-C.

    Returns:
        The command's exit code; MISTAKE after ConfigError, FAULT after FaultError or OSError, INTERRUPTED after Ctrl-C.
    """
    collect_seldom()
    try:
        return command(parse(arguments))
    except ConfigError as error:
        text, code = f"error: {error}", MISTAKE
    except FaultError as error:
        text, code = f"error: {error}", FAULT
    except OSError as error:
        text, code = f"error: {format_os_error(error)}", FAULT
    except KeyboardInterrupt:
        text, code = interrupted, INTERRUPTED
    print(text, file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, and completes option values when the shell requests it."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of exiting."""
        for python, kind in (("invalid int value:", "a whole number"), ("invalid float value:", "a number")):
            message = message.replace(python, f"must be {kind}, got")
        raise ConfigError(f"{message}; see {self.prog} --help")

    def completers(self) -> dict[str, Completer]:
        """Return the completer of each option by its name; the other options complete file names."""
        return {"set": lambda prefix, **context: [f"{key}=" for key in RunConfig().flat()]}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the command line; raises ConfigError."""
        if "_ARGCOMPLETE" in os.environ:  # the shell requests completions: nothing runs
            import argcomplete

            completers = self.completers()
            for action in self._actions:
                if action.dest in completers:
                    action.completer = completers[action.dest]  # type: ignore[attr-defined]
            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)


def add_config_options(
    parser: argparse.ArgumentParser, used: str = "", settable: str = "a setting", default: str | None = None
) -> None:
    """Add --config, required unless there is a default, and --set.

    Args:
        parser: receives the options.
        used: for the help text, what the command reads of the file.
        settable: for the help text, what --set changes.
        default: the file that is read without --config.
    """
    text = f"settings in YAML{used}" + (f" (default: {default})" if default else "")
    parser.add_argument("--config", default=default, required=default is None, metavar="FILE", help=text)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"change {settable}; may be given several times"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json, for programs that read the output."""
    parser.add_argument("--json", action="store_true", help="print one JSON document, see AGENTS.md")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, a trained model, and --device, where it runs."""
    parser.add_argument(
        "model", metavar="MODEL", help="folder or s3:// address of an exported model or of checkpoints, or a hub id"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:<number> or auto (default: a GPU if any)"
    )


def format_os_error(error: OSError) -> str:
    """Format an error of the operating system or of a bucket in one line: `<file>: <reason>`."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
