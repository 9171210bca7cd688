# PYTHON_ARGCOMPLETE_OK
"""Remove a study whole, ledger, checkpoints, report and MLflow runs: `python -m search.delete --study NAME`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from fgseg.storage.store import open_store
from search.cli.options import Parser, add_location_options, confirm, location_from
from search.ledger.catalog import check_owner_file, open_ledger
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State
from search.study.location import LEDGER, StudyLocation, public_address
from search.tracking.sync import hold

DONE, FAULT = 0, 1


def delete(location: StudyLocation, tracking: bool = True) -> None:
    """Remove a study: its MLflow runs, its folder, and its ledger last, so that a killed call can be repeated.

    Args:
        place: of a study that no driver works on.
        tracking: whether its MLflow runs go as well.

    Raises:
        ConfigError: there is no such study, a driver holds it, or its folder holds the files of another one.
        TrackingError: MLflow could not be reached; nothing of the storage is removed then.
    """
    ledger, store = open_ledger(location), open_store(location.folder)
    with hold(ledger):
        check_owner_file(location, ledger)
        if tracking:
            from search.tracking.model_registry import delete_versions
            from search.tracking.run_reader import delete_runs

            delete_versions(location.tracking_uri, location.study, ledger.metadata.uid)
            delete_runs(location.tracking_uri, location.study, ledger.metadata.uid)
        store.clear(keep=None if location.shared_ledger else LEDGER)
        if location.shared_ledger:
            ledger.delete_study()
    if not location.shared_ledger:
        store.clear()  # the ledger, once its lock, which is a row of it, is gone


def describe(location: StudyLocation, ledger: Ledger, tracking: bool) -> str:
    """What would go, as a question."""
    records = ledger.trials()
    opened = sum(record.state is State.RUNNING for record in records)
    mebibytes = sum(open_store(location.folder).sizes().values()) / 2**20
    runs = f", and its runs in MLflow at {public_address(location.tracking_uri)}" if tracking else ""
    trials = f"{len(records)} trials ({opened} open)" if opened else f"{len(records)} trials"
    return f"delete study {location.study}: {trials}, {mebibytes:.0f} MiB in {location.folder}{runs}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 deleted, 1 refused by MLflow, a file or the answer, 2 a mistake."""
    try:
        return run(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE


def run(options: argparse.Namespace) -> int:
    """Ask, and delete; raises ConfigError."""
    location, tracking = location_from(options), not options.no_tracking
    ledger = open_ledger(location)
    check_owner_file(location, ledger)
    hold(ledger).close()  # whoever has to stop a driver first need not be asked
    from search.tracking.client import TrackingError  # once the mistakes that need no MLflow are told

    try:
        if not confirm(describe(location, ledger, tracking), options.yes):
            print("nothing was deleted")
            return FAULT
        delete(location, tracking)
    except TrackingError as error:
        print(f"error: {error}; nothing was deleted; with --no-tracking its runs stay there", file=sys.stderr)
        return FAULT
    except (LedgerError, OSError) as error:
        print(f"error: {error}; run the same command again to delete the rest", file=sys.stderr)
        return FAULT
    print(
        f"study {location.study} is deleted" + ("; `mlflow gc` frees what MLflow keeps of its runs" if tracking else "")
    )
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.delete", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-tracking", action="store_true", help="leave the runs in MLflow")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
