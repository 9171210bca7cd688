# PYTHON_ARGCOMPLETE_OK
"""Compare approach families on the test split, each trained with several seeds: `python -m search.compare`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from fgseg.cli import DONE, add_config_options, add_json_option
from fgseg.config.errors import ConfigError
from fgseg.config.loading import parse_assignments
from search.cli.options import Parser, add_search_options, search_settings
from search.cli.signals import Signals, run_with_signals
from search.compare.plans import name_of, plans_from


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_with_signals(parse, compare_or_print, arguments)


def compare_or_print(options: argparse.Namespace, signals: Signals) -> int:
    """Train the missing repeats of every family and write the comparison, or print the plan; returns the exit code."""
    plans = plans_from(
        options.spaces,
        studies=options.studies,
        point=options.point,
        seeds=options.seeds,
        config=options.config,
        assignments=parse_assignments(options.set),
        search=search_settings(options),
    )
    if options.dry_run and options.json:
        raise ConfigError("--json: not with --dry-run; leave one of them out")
    if options.dry_run:
        from search.compare.runner import print_plans

        return print_plans(plans)
    from search.compare.runner import run_comparison, stored_comparison  # takes seconds: the settings are checked first

    name = name_of(options.name, plans, options.point)
    if not options.json:
        return run_comparison(plans, name, options.point, signals)
    with redirect_stdout(sys.stderr):
        code = run_comparison(plans, name, options.point, signals)
    if code == DONE:
        print(stored_comparison(plans, name))
    return code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.compare", description=__doc__)
    add = parser.add_argument
    add("--spaces", nargs="+", metavar="NAME", required=True, help="approach families, such as baseline bas bas_cp slc")
    add("--studies", nargs="+", metavar="NAME", help="their studies in the same order (default: <config>-<space>)")
    add(
        "--point",
        default="start",
        metavar="POINT",
        help="start, of each space, or best, of each study (default: start)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="repeats of each family, each with its own seed (default: 3)")
    add("--name", metavar="NAME", help="name of the comparison (default: <config>-<point>)")
    add_config_options(parser, settable="a setting, or search.KEY.low of a range", default="configs/quickstart.yaml")
    add_search_options(parser, without=("trials", "register_model", "sampler", "pruner"))
    add("--dry-run", action="store_true", help="print what would run, and exit")
    add_json_option(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
