# PYTHON_ARGCOMPLETE_OK
"""Show the state of a study, while it runs or afterwards: `python -m search.status --study NAME`."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fgseg.cli import DONE, add_json_option, run_command
from fgseg.config.errors import ConfigError
from search.cli.options import Parser, add_location_options, location_from
from search.console.document_content import status_document
from search.console.documents import print_document
from search.console.forecast import forecast_line, time_lines
from search.console.study_status import StudyStatus, expected_end, time_left, trial_time
from search.console.trial_table import trial_table
from search.ledger.catalog import open_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State
from search.ledger.study_reader import confirmed
from search.ledger.time_used import time_used
from search.ledger.untrained import untrained_of
from search.study.location import StudyLocation, public_address

PERIOD_S = 2.0
"""Seconds between two reads of the ledger with --follow."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, show_study, arguments)


def show_study(options: argparse.Namespace) -> int:
    """Print the state of the study once, or until its driver ends or Ctrl-C; raises ConfigError."""
    if options.json and options.follow:
        raise ConfigError("--json: not with --follow; call the command again instead")
    location, console = location_from(options), Console(highlight=False)
    if options.json:
        return print_document(status_document(location))
    ledger = open_ledger(location)
    if not options.follow:
        console.print(study_view(ledger, location, console.width))
        return DONE
    live = Live(study_view(ledger, location, console.width), console=console, auto_refresh=False)
    with suppress(KeyboardInterrupt), live:  # Ctrl-C is the usual way to end --follow
        while ledger.holder():
            time.sleep(PERIOD_S)
            live.update(study_view(ledger, location, console.width), refresh=True)
    return DONE


def study_view(ledger: Ledger, location: StudyLocation, width: int) -> Group:
    """Build the printed state of a study: driver, progress, running trials, best trial, failures.

    Args:
        ledger: of the study; only read.
        location: of the study.
        width: columns of the terminal.
    """
    records, holder, metadata = ledger.trials(), ledger.holder(), ledger.metadata
    status = StudyStatus(metadata, records)
    status.best = ledger.best(records)  # the confirmed trial, if --confirm has selected one
    now = time.time()
    seconds_left, expected = expected_end(metadata, records, now) if holder else (None, None)
    left = time_left(seconds_left) if holder else "not running"
    used = time_lines(metadata, time_used(metadata, records, now if holder else None))
    driver = f"runs on {holder.name}, process {holder.pid}" if holder else "no driver runs"
    untrained = untrained_of(location, metadata)
    duration = trial_time(records)
    failures = [Text(f"trial {r.number:03d} FAILED: {r.reason}") for r in records if r.state is State.FAIL]
    return Group(
        Text(f"{location.study}: {driver}", style="bold"),
        Text(f"{status.summary_line()}, {left}"),
        *([Text(forecast_line(metadata, expected))] if expected else []),
        *map(Text, used),
        *confirmation_lines(ledger),
        trial_table(status, width, now if holder else None),
        *([Text(f"checkpoint, untrained: mIoU {untrained.miou:.4f}")] if untrained else []),
        *([Text(str(duration))] if duration else []),
        *failures,
        Text(f"MLflow: {public_address(location.tracking_uri)}", style="dim"),
    )


def confirmation_lines(ledger: Ledger) -> list[Text]:
    """Describe the trial that --confirm has selected; empty if it has selected none."""
    found = ledger.metadata.confirmation
    if found is None or confirmed(ledger.trials(), ledger.metadata) is None:
        return []
    text = f"confirmed: trial {found.trial:03d}, {found.mean:.4f} over {found.seeds} seeds, at least {found.low:.4f}"
    return [Text(text)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.status", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--follow", action="store_true", help="refresh until the driver of the study ends")
    add_json_option(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
