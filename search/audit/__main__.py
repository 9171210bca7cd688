# PYTHON_ARGCOMPLETE_OK
"""Check a study's ledger, files and MLflow: `python -m search.audit --study NAME --storage DIR`.  Changes nothing."""

import argparse
import sys
from collections.abc import Sequence

from pydantic import BaseModel

from fgseg.cli import DONE, FAULT, add_json_option, run_command
from fgseg.config.errors import ConfigError
from fgseg.storage.s3 import ObjectStoreError
from search.audit.points import audit_points
from search.audit.trials import audit_location
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.database import LedgerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`), FAULT if anything is broken."""
    return run_command(parse, print_broken, arguments)


class AuditDocument(BaseModel):
    """Result of an audit, as `--json` prints it."""

    study: str
    broken: list[str]
    """One line per broken invariant; the exit code is 1 if there is any."""
    points: int | None = None
    """With `--replay`, the number of points of the study."""
    points_equal: int | None = None
    """With `--replay`, the number of points that were suggested again."""


def print_broken(options: argparse.Namespace) -> int:
    """Print each broken invariant as a line, or as JSON; raises ConfigError."""
    result = audit_study(options)
    if options.json:
        print(result.model_dump_json(indent=1))
    else:
        replayed = f", {result.points_equal} of {result.points} points suggested again" if options.replay else ""
        print(*result.broken, sep="\n", end="\n" if result.broken else "")
        print(f"study {options.study}: {f'{len(result.broken)} broken' if result.broken else 'clean'}{replayed}")
    return FAULT if result.broken else DONE


def audit_study(options: argparse.Namespace) -> AuditDocument:
    """Check a study; a ledger or bucket that cannot be read is a broken invariant.  Raises ConfigError."""
    if options.trials is not None and options.trials < 1:
        raise ConfigError(f"--trials: got {options.trials}, must be at least 1")
    location, result = location_from(options), AuditDocument(study=options.study, broken=[])
    try:
        result.broken += audit_location(location, options.trials, options.interrupted, not options.no_tracking)
        if options.replay:
            result.points, unequal = audit_points(location)
            result.points_equal = result.points - len(unequal)
            result.broken += unequal
    except (LedgerError, ObjectStoreError) as error:
        result.broken = [str(error)]
    return result


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
    add_json_option(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
