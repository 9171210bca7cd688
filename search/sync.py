# PYTHON_ARGCOMPLETE_OK
"""Update a study's MLflow runs from its ledger: `python -m search.sync --study NAME --storage DIR [--rebuild]`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import DONE, FAULT, run_command
from search.cli.options import Parser, add_location_options, confirm, location_from
from search.ledger.catalog import open_ledger
from search.study.location import StudyLocation, public_address
from search.tracking.sync import hold, is_database, rebuild, sync


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`), FAULT also if the answer is no."""
    return run_command(parse, sync_or_rebuild, arguments)


def sync_or_rebuild(options: argparse.Namespace) -> int:
    """Send missing data to MLflow, or rebuild its runs; raises ConfigError, FaultError, OSError."""
    location = location_from(options)
    if not options.rebuild:
        sync(location)
        print(f"study {location.study}: MLflow at {public_address(location.tracking_uri)} holds everything")
    elif may_delete_runs(location, options.yes):
        print(rebuild(location))
    else:
        print("nothing was changed")
        return FAULT
    return DONE


def may_delete_runs(location: StudyLocation, yes: bool) -> bool:
    """Return whether the runs may be rebuilt: asks if runs on a server would be deleted; a database is only renamed.

    Raises:
        ConfigError: there is no such study, a driver runs it, or standard input is no terminal.
    """
    if is_database(location):
        return True
    hold(open_ledger(location)).close()  # a study in use is refused before the question
    address = public_address(location.tracking_uri)
    return confirm(f"delete the runs of {location.study} at {address} and write them again", yes)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.sync", description=__doc__)
    add_location_options(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="rebuild MLflow: in a SQLite database every study of the storage, on a server the runs of this study",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before runs on a server are deleted")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
