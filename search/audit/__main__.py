# PYTHON_ARGCOMPLETE_OK
"""Check a study's ledger, files and MLflow: `python -m search.audit --study NAME --storage DIR`.  Changes nothing."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import DONE, FAULT, run_command
from fgseg.storage.s3 import ObjectStoreError
from search.audit.points import audit_points
from search.audit.trials import audit_location
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.database import LedgerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`), FAULT if anything is broken."""
    return run_command(parse, print_broken, arguments)


def print_broken(options: argparse.Namespace) -> int:
    """Print each broken invariant as a line; a ledger or bucket that cannot be read is one.  Raises ConfigError."""
    location, tracking, replayed = location_from(options), not options.no_tracking, ""
    try:
        broken = list(audit_location(location, options.trials, options.interrupted, tracking))
        if options.replay:
            points, unequal = audit_points(location)
            broken += unequal
            replayed = f", {points - len(unequal)} of {points} points suggested again"
    except (LedgerError, ObjectStoreError) as error:
        broken = [str(error)]
    for line in broken:
        print(line)
    print(f"study {options.study}: {f'{len(broken)} broken' if broken else 'clean'}{replayed}")
    return FAULT if broken else DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.audit", description=__doc__)
    add_location_options(parser)
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="number of trials that must have ended (default: at least the last budget)",
    )
    parser.add_argument("--interrupted", action="store_true", help="allow open trials, and results that MLflow lacks")
    parser.add_argument("--no-tracking", action="store_true", help="do not check MLflow")
    parser.add_argument(
        "--replay", action="store_true", help="also suggest every point again, and compare; takes seconds a trial"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
