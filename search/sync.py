# PYTHON_ARGCOMPLETE_OK
"""Send MLflow what it lacks of a study: `python -m search.sync --study NAME --storage DIR [--rebuild]`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from fgseg.storage.s3 import ObjectStoreError
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.catalog import open_ledger
from search.ledger.database import LedgerError
from search.study.location import public_address
from search.tracking.sync import rebuild, sync

DONE, FAULT = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 MLflow, ledger or bucket fails, 2 the user's mistake."""
    try:
        options = parse(arguments)
        return run(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE


def run(options: argparse.Namespace) -> int:
    """Do what the options say; raises ConfigError."""
    location = location_from(options)
    open_ledger(location)
    from search.tracking.client import TrackingError  # once the mistakes that need no MLflow are told

    try:
        if options.rebuild:
            print(rebuild(location, options.yes) or "nothing was changed")
        else:
            sync(location)
            print(f"study {location.study}: MLflow at {public_address(location.tracking_uri)} holds everything")
    except (LedgerError, ObjectStoreError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.sync", description=__doc__)
    add_location_options(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="write MLflow anew: a SQLite database for every study of the storage, on a server this study's runs",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before runs on a server are deleted")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
