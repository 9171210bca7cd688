# PYTHON_ARGCOMPLETE_OK
"""Write the report of a study as HTML, Markdown and pictures: `python -m search.report --study NAME`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import MISTAKE, format_os_error
from fgseg.config.errors import ConfigError
from fgseg.storage.store import join
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.catalog import open_ledger
from search.ledger.database import LedgerError
from search.report.build import write_report
from search.report.summary import summarise
from search.study.location import PAGE

DONE, FAULT = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 a fault of ledger or files, 2 the user's mistake."""
    try:
        return report_study(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE


def report_study(options: argparse.Namespace) -> int:
    """Write the report and print its address; returns the exit code, raises ConfigError."""
    location = location_from(options)
    try:
        write_report(location, frames=not options.no_frames)
        best = summarise(open_ledger(location)).best
    except (LedgerError, OSError) as error:
        print(f"error: {format_os_error(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return FAULT
    if best is None:
        print(f"study {location.study}: no trial has finished yet")
    print(f"report: {join(location.folder, 'report', PAGE)}")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.report", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--no-frames", action="store_true", help="leave out the pictures of validation frames")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
