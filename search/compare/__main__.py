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
from search.compare.plans import FIRST_SEEDS, MAX_AUTO_SEEDS, PRECISION, check_precision, name_of, plans_from

SEARCH_ONLY = (
    *("trials", "register_model", "objective", "keep", "max_drop", "sampler", "trial_seeds", "warm_start", "pruner"),
    *("confirm", "confirm_seeds"),
)
"""Settings that only a search has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_with_signals(parse, compare_or_print, arguments)


def compare_or_print(options: argparse.Namespace, signals: Signals) -> int:
    """Train the missing repeats of every family and write the comparison, or print the plan; returns the exit code."""
    plans = plans_from(
        options.spaces,
        studies=options.studies,
        point=options.point,
        seeds=FIRST_SEEDS if options.seeds is None else options.seeds,
        config=options.config,
        assignments=parse_assignments(options.set),
        search=search_settings(options),
    )
    name = name_of(options.name, plans, options.point)
    if options.seeds is not None and options.precision is not None:
        raise ConfigError("--precision: changes nothing without --seeds auto; add --seeds auto")
    given = PRECISION if options.precision is None else options.precision
    precision = check_precision(given) if options.seeds is None else None
    if options.dry_run:
        from search.compare.dry_run import comparison_plan, print_comparison_plan
        from search.console.documents import print_document
        from search.execution.preflight import check_plan

        for plan in plans:
            check_plan(plan)
        found = comparison_plan(plans, name, options.point)
        return print_document(found) if options.json else print_comparison_plan(found)
    from search.compare.runner import run_comparison, stored_comparison  # takes seconds: the settings are checked first

    if not options.json:
        return run_comparison(plans, name, options.point, signals, precision)
    with redirect_stdout(sys.stderr):
        code = run_comparison(plans, name, options.point, signals, precision)
    if code == DONE:
        print(stored_comparison(plans, name))
    return code


def seed_count(text: str) -> int | None:
    """Read the value of --seeds: a number, or None for auto."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number or auto") from None


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
    add(
        "--seeds",
        type=seed_count,
        default=FIRST_SEEDS,
        metavar="N",
        help="repeats of each family, each with its own seed; auto adds seeds until the intervals are narrow enough, "
        f"--max-hours is used up, or there are {MAX_AUTO_SEEDS} (default: {FIRST_SEEDS})",
    )
    add(
        "--precision",
        type=float,
        metavar="IOU",
        help=f"with --seeds auto, largest half of a 95 %% interval of a difference in mIoU (default: {PRECISION})",
    )
    add("--name", metavar="NAME", help="name of the comparison (default: <config>-<point>)")
    add_config_options(parser, settable="a setting, or search.KEY.low of a range", default="configs/quickstart.yaml")
    add_search_options(parser, without=SEARCH_ONLY)
    add("--dry-run", action="store_true", help="print what would run, and exit")
    add_json_option(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
