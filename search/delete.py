# PYTHON_ARGCOMPLETE_OK
"""Delete a study with its ledger, checkpoints, report and MLflow runs: `python -m search.delete --study NAME`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from fgseg.cli import DONE, FAULT, format_os_error, run_command
from fgseg.config.errors import FaultError
from fgseg.results import SupersededError
from fgseg.storage.store import open_store
from search.cli.options import Parser, add_location_options, confirm, location_from
from search.ledger.catalog import check_owner_file, find_ledger, open_ledger
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.study.location import LEDGER, StudyLocation, public_address
from search.study.plan import CONFIRMED
from search.tracking.client import TrackingError
from search.tracking.optuna_studies import forget_study
from search.tracking.sync import hold


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`), FAULT also if the answer is no."""
    return run_command(parse, delete_after_asking, arguments)


def delete_after_asking(options: argparse.Namespace) -> int:
    """Ask, and delete the study; raises ConfigError, FaultError."""
    location, tracking = location_from(options), not options.no_tracking
    ledger = open_ledger(location)
    check_owner_file(location, ledger)
    hold(ledger).close()  # a study in use is refused before the question
    if not confirm(deletion_summary(location, ledger, tracking), options.yes):
        print("nothing was deleted")
        return FAULT
    try:
        delete(location, tracking)
    except TrackingError as error:
        raise FaultError(f"{error}; nothing was deleted; with --no-tracking its runs stay there") from None
    except SupersededError as error:
        raise FaultError(f"{error}; its ledger was not deleted") from None
    except (LedgerError, OSError) as error:
        reason = format_os_error(error) if isinstance(error, OSError) else error
        raise FaultError(f"{reason}; run the same command again to delete the rest") from None
    hint = "; `mlflow gc` frees what MLflow keeps of its runs" if tracking else ""
    print(f"study {location.study} is deleted{hint}")
    if find_ledger(replace(location, study=f"{location.study}{CONFIRMED}")):
        print(f"its repeats of --confirm are a study of their own, {location.study}{CONFIRMED}: delete it as well")
    return DONE


def delete(location: StudyLocation, tracking: bool = True) -> None:
    """Delete a study: its MLflow runs, its folder, and its ledger last, so that an interrupted call can be repeated.

    Args:
        location: of a study that no driver runs.
        tracking: whether its MLflow runs are deleted as well.

    Raises:
        ConfigError: there is no such study, a driver runs it, or its folder contains the files of another study.
        TrackingError: MLflow could not be reached; nothing of the storage was deleted.
        FaultError: the file for optuna-dashboard is damaged.
        LedgerError, OSError: the ledger or a file could not be deleted.
    """
    ledger, store = open_ledger(location), open_store(location.folder)
    with hold(ledger):
        check_owner_file(location, ledger)
        if tracking:
            from search.tracking.model_registry import delete_versions
            from search.tracking.run_reader import delete_runs
            from search.tracking.trial_models import delete_models

            delete_versions(location.tracking_uri, location.study, ledger.metadata.uid)
            delete_models(location.tracking_uri, location.study, ledger.metadata.uid)
            delete_runs(location.tracking_uri, location.study, ledger.metadata.uid)
        forget_study(location)
        store.clear(keep=None if location.shared_ledger else LEDGER)
        if location.shared_ledger:
            ledger.delete_study()
    if not location.shared_ledger:
        store.clear()  # the ledger's file last: the lock is a row in it


def deletion_summary(location: StudyLocation, ledger: Ledger, tracking: bool) -> str:
    """Describe what would be deleted, as the question to the user."""
    records = ledger.trials()
    opened = sum(record.is_open for record in records)
    mebibytes = sum(open_store(location.folder).sizes().values()) / 2**20
    runs = f", and its runs in MLflow at {public_address(location.tracking_uri)}" if tracking else ""
    trials = f"{len(records)} trials ({opened} open)" if opened else f"{len(records)} trials"
    return f"delete study {location.study}: {trials}, {mebibytes:.0f} MiB in {location.folder}{runs}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.delete", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-tracking", action="store_true", help="keep the runs in MLflow")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
