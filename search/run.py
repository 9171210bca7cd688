# PYTHON_ARGCOMPLETE_OK
"""Search one approach family: `python -m search.run --space bas_cp`.  Running it again continues the study."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import parse_assignments, read_yaml
from search.cli.options import Parser, add_search_options, run_command, search_settings
from search.cli.signals import Signals
from search.study.plan import Plan, make_plan, read_search
from search.study.space import list_spaces


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 done, 1 stopped by a fault, 2 the user's mistake, 130 interrupted (143 by SIGTERM).
    """
    return run_command(lambda signals: carry_out(parse(arguments), signals))


def carry_out(options: argparse.Namespace, signals: Signals) -> int:
    """Do what the options ask for; returns the exit code."""
    if options.list or options.list_studies:
        return show_lists(options)
    plan = plan_from(options)
    if options.dry_run:
        from search.console.listings import print_plan

        return print_plan(plan)
    from search.execution.controller import (
        run_study,
    )  # imports of seconds come after the mistakes that need none of them

    return run_study(plan, signals)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.run", description=__doc__)
    add = parser.add_argument
    add("--space", metavar="NAME", help="approach family to search (see --list)")
    add("--list", action="store_true", help="show the search spaces and end")
    add("--list-studies", action="store_true", help="show the studies of the storage and end")
    add("--study", metavar="NAME", help="name of the study (default: <config>-<space>)")
    add("--trials", type=int, metavar="N", help="trials of the whole study, finished ones included")
    add(
        "--no-register",
        dest="register_model",
        action="store_false",
        default=None,
        help="do not register the best model in MLflow at the end",
    )
    add("--sampler", metavar="NAME", help="auto, gp, tpe or random (default: auto)")
    add("--pruner", metavar="NAME", help="none, asha or median (default: none)")
    add_search_options(parser)
    add("--dry-run", action="store_true", help="show the resolved settings, the space and what would run, and end")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """What the options ask for, resolved and checked; raises ConfigError."""
    if options.space is None:
        raise ConfigError(f"--space: got nothing, must be one of: {', '.join(list_spaces())}")
    return make_plan(
        options.space, options.config, parse_assignments(options.set), search_settings(options), options.study
    )


def show_lists(options: argparse.Namespace) -> int:
    """Print the spaces, or the studies of the storage or ledger that the settings and flags name."""
    from search.console.listings import print_spaces, print_studies

    if options.list:
        return print_spaces()
    path = find_file(options.config)
    return print_studies(read_search(read_yaml(path).get("search") or {}, path, search_settings(options)))


if __name__ == "__main__":
    sys.exit(main())
