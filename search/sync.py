# PYTHON_ARGCOMPLETE_OK
"""Send MLflow what it lacks of a study: `python -m search.sync --study NAME --storage DIR [--rebuild]`."""

import argparse
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from fgseg.storage.s3 import ObjectStoreError
from fgseg.storage.store import join, open_store
from search.cli.options import Parser, add_place, confirm, place_from
from search.database import LedgerError
from search.ledger import Ledger
from search.lock import LockedError
from search.projection import StudyCard, settings_of
from search.study.location import MODEL, REGISTERED, Place, public_address

DONE, FAULT = 0, 1


def sync(place: Place) -> None:
    """Bring MLflow in line with one study that no driver works on; repeating it changes nothing.

    Raises:
        ConfigError: there is no such study, or a driver holds it.
        TrackingError: MLflow could not be reached or refused a request; calling again sends the rest.
    """
    ledger = place.open_ledger()
    with hold(ledger):
        write(place, ledger)


def rebuild(place: Place, yes: bool) -> str:
    """Write MLflow anew from the ledger; returns in one line what was done, or nothing if the user said no.

    A SQLite database is moved aside and every study of the storage is written into a fresh one, whose registry the
    next run of each fills again.  On a server the runs of this study alone are deleted and written again, which is
    asked first unless `yes`.

    Raises:
        ConfigError, TrackingError: as `sync`; the databases are not touched if a study of the storage is in use.
    """
    if place.tracking_uri.startswith("sqlite:///"):
        return rebuild_database(place)
    ledger = place.open_ledger()
    address = public_address(place.tracking_uri)
    with hold(ledger):
        if not confirm(f"delete the runs of {place.study} at {address} and write them again", yes):
            return ""
        from search.tracking_read import delete_runs

        deleted = delete_runs(place.tracking_uri, place.study, ledger.uid)
        write(place, ledger)
    return f"{deleted} runs deleted, and written again"


def rebuild_database(place: Place) -> str:
    """Write every study of the storage into a new SQLite file, which replaces the old one when it is whole."""
    from sqlalchemy.engine import make_url

    place.open_ledger()
    stored = open_store(place.storage).folders()  # a shared ledger may know studies of other storages
    path = Path(make_url(place.tracking_uri).database or "").absolute()
    # A name of its own each time: within a process, MLflow keeps connections to a file it once had under an address.
    unfinished = path.with_name(f"{path.name}.rebuild-{uuid.uuid4().hex}")
    uri = f"sqlite:///{unfinished}"
    places = [replace(place, study=name, tracking_uri=uri) for name in place.studies() if name in stored]
    with ExitStack() as stack:
        ledgers = [other.open_ledger() for other in places]
        for ledger in ledgers:
            stack.enter_context(hold(ledger))
            card_of(ledger, place)
        for leftover in (*path.parent.glob(f"{path.name}.rebuild-*"), *path.parent.glob(f".{path.name}.rebuild-*")):
            leftover.unlink()  # of a call that was killed
        for other, ledger in zip(places, ledgers, strict=True):
            write(other, ledger)
            open_store(join(other.folder, MODEL)).delete(REGISTERED)
        backup = move_aside(path)
        unfinished.rename(path)
        unfinished.with_name(f".{unfinished.name}.lock").unlink(missing_ok=True)
    kept = f"; the old database is now {backup}" if backup else ""
    studies = "1 study" if len(places) == 1 else f"{len(places)} studies"
    return f"{studies} written into a new {path}{kept}"


def move_aside(path: Path) -> Path | None:
    """Rename a SQLite file, and what SQLite keeps beside it, to the first free `<name>.bak<n>`."""
    if not path.exists():
        return None
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{number}")).exists():
        number += 1
    for companion in ("-journal", "-wal", "-shm"):  # without its journal, a file that was cut short stays so
        beside = path.with_name(path.name + companion)
        if beside.exists():
            beside.rename(f"{backup}{companion}")
    return path.rename(backup)


def hold(ledger: Ledger) -> ExitStack:
    """The study's lock, entered; a context.  Raises ConfigError where a driver holds it."""
    stack = ExitStack()
    try:
        stack.enter_context(ledger.hold())
    except LockedError as error:
        raise ConfigError(str(error)) from None
    return stack


def write(place: Place, ledger: Ledger) -> None:
    """Bring MLflow in line with a study that is held."""
    from search.tracking import reconcile

    card = card_of(ledger, place)
    files = {f"report/{name}": place.report_store.get(name) for name in place.report_store.list()}
    reconcile(ledger, place.tracking_uri, card, settings_of(ledger), files=files)


def card_of(ledger: Ledger, place: Place) -> StudyCard:
    """How the study presents itself, as its last run recorded it; raises ConfigError where none did."""
    if not ledger.card:
        raise ConfigError(
            f"study {place.study} was never started, so there is nothing to send; run search.run, or delete it"
        )
    return StudyCard.of(ledger, place)


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
    place = place_from(options)
    place.open_ledger()
    from search.tracking import TrackingError  # once the mistakes that need no MLflow are told

    try:
        if options.rebuild:
            print(rebuild(place, options.yes) or "nothing was changed")
        else:
            sync(place)
            print(f"study {place.study}: MLflow at {public_address(place.tracking_uri)} holds everything")
    except (LedgerError, ObjectStoreError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.sync", description=__doc__)
    add_place(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="write MLflow anew: a SQLite database for every study of the storage, on a server this study's runs",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before runs on a server are deleted")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
