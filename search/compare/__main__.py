# PYTHON_ARGCOMPLETE_OK
"""Compare approach families on the test split, each trained with several seeds: `python -m search.compare`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.config.loading import parse_assignments
from search.cli.options import Parser, add_search_options, run_command, search_settings
from search.cli.signals import Signals
from search.compare.plans import name_of, plans_from


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 done, 1 stopped by a fault, 2 the user's mistake, 130 interrupted (143 by SIGTERM).
    """
    return run_command(lambda signals: carry_out(parse(arguments), signals))


def carry_out(options: argparse.Namespace, signals: Signals) -> int:
    """Train what is missing of every family's repeats, then write the comparison; returns the exit code."""
    plans = plans_from(
        options.spaces,
        studies=options.studies,
        point=options.point,
        seeds=options.seeds,
        config=options.config,
        assignments=parse_assignments(options.set),
        search=search_settings(options),
    )
    if options.dry_run:
        from search.compare.runner import print_plans

        return print_plans(plans)
    from search.compare.runner import (
        run_comparison,
    )  # imports of seconds come after the mistakes that need none of them

    return run_comparison(plans, name_of(options.name, plans, options.point), options.point, signals)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.compare", description=__doc__)
    add = parser.add_argument
    add("--spaces", nargs="+", metavar="NAME", required=True, help="approach families, such as baseline bas bas_cp slc")
    add("--studies", nargs="+", metavar="NAME", help="their studies, in the same order (default: <config>-<space>)")
    add("--point", default="start", metavar="POINT", help="train each space's start (default), or its study's best")
    add(
        "--seeds", type=int, default=3, metavar="N", help="repeats of each family, with seeds of their own (default: 3)"
    )
    add("--name", metavar="NAME", help="name of the comparison (default: <config>-<point>)")
    add_search_options(parser)
    add("--dry-run", action="store_true", help="show what would run, and end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
