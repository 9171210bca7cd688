# PYTHON_ARGCOMPLETE_OK
"""Check a study's ledger, files and MLflow: `python -m search.audit --study NAME --storage DIR`.  Changes nothing."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from fgseg.storage.s3 import ObjectStoreError
from search.audit.trials import audit_location
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.database import LedgerError

CLEAN, BROKEN = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 clean, 1 with one line per broken invariant, 2 the user's mistake."""
    try:
        options = parse(arguments)
        location, tracking = location_from(options), not options.no_tracking
        broken = list(audit_location(location, options.trials, options.interrupted, tracking))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except (LedgerError, ObjectStoreError) as error:
        broken = [str(error)]
    for line in broken:
        print(line)
    print(f"study {options.study}: {f'{len(broken)} broken' if broken else 'clean'}")
    return BROKEN if broken else CLEAN


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.audit", description=__doc__)
    add_location_options(parser)
    parser.add_argument(
        "--trials", type=int, metavar="N", help="how many must have ended (default: the last budget, or more)"
    )
    parser.add_argument("--interrupted", action="store_true", help="allow open trials, and an MLflow that lags behind")
    parser.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
