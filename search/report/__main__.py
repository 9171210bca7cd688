# PYTHON_ARGCOMPLETE_OK
"""Write the report of a study as HTML, Markdown and charts: `python -m search.report --study NAME`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import DONE, run_command
from fgseg.storage.store import join
from search.cli.options import Parser, add_location_options, location_from
from search.ledger.catalog import open_ledger
from search.report.build import complete_untrained, write_report
from search.study.location import PAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, report_study, arguments)


def report_study(options: argparse.Namespace) -> int:
    """Write the report and print its address; raises ConfigError, FaultError, OSError."""
    location = location_from(options)
    if not options.no_frames and (failure := complete_untrained(location)):
        print(f"warning: {failure}", file=sys.stderr)
    write_report(location, frames=not options.no_frames)
    if open_ledger(location).best() is None:
        print(f"study {location.study}: no trial has finished yet")
    print(f"report: {join(location.folder, 'report', PAGE)}")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.report", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--no-frames", action="store_true", help="leave out the validation frames")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
