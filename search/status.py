# PYTHON_ARGCOMPLETE_OK
"""Show where a study stands, from any shell, while it runs or afterwards: `python -m search.status --study NAME`."""

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from search.cli.options import Parser, add_location_options, location_from
from search.console.study_status import StudyStatus, recent_pace, time_left
from search.ledger.catalog import open_ledger
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State
from search.study.location import public_address

DONE, FAULT = 0, 1
PERIOD_S = 2.0
"""How often --follow looks again."""


def view(ledger: Ledger, name: str, look: str) -> Group:
    """Everything that the command shows of a study.

    Args:
        ledger: the study.
        name: its name.
        look: where MLflow has it.
    """
    records, holder = ledger.trials(), ledger.holder()
    status = StudyStatus(ledger.metadata, records)
    pace = recent_pace(records, time.time())
    left = time_left(status.seconds_left(pace)) if holder else "nobody works on it"
    driver = f"runs on {holder.name}, process {holder.pid}" if holder else "no driver runs"
    failures = [Text(f"trial {r.number:03d} FAILED: {r.reason}") for r in records if r.state is State.FAIL]
    return Group(
        Text(f"{name}: {driver}", style="bold"),
        Text(f"{status.summary_line()}, {left}"),
        status.running_table(),
        status.class_table(),
        *failures,
        Text(f"look: {look}", style="dim"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 shown, 1 the ledger fails, 2 the user's mistake."""
    try:
        return run(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    except KeyboardInterrupt:
        return DONE


def run(options: argparse.Namespace) -> int:
    """Show the study once, or until its driver ends; raises ConfigError."""
    location, console = location_from(options), Console(highlight=False)
    ledger, look = open_ledger(location), public_address(location.tracking_uri)
    if not options.follow:
        console.print(view(ledger, location.study, look))
        return DONE
    with Live(view(ledger, location.study, look), console=console, auto_refresh=False) as live:
        while ledger.holder():
            time.sleep(PERIOD_S)
            live.update(view(ledger, location.study, look), refresh=True)
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.status", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--follow", action="store_true", help="go on showing it until its driver ends")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
