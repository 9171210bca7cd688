"""Bring MLflow in line with the ledger, or build it anew."""

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from fgseg.config.errors import ConfigError
from fgseg.storage.store import join, open_store
from search.ledger.catalog import open_ledger, study_names
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError
from search.ledger.study_metadata import StudyMetadata
from search.study.location import MODEL, REGISTERED, StudyLocation, public_address
from search.tracking.client import TrackingError, environment
from search.tracking.run_schema import LedgerReader, Phase, explain
from search.tracking.run_writer import StudyRunWriter


def sync(location: StudyLocation) -> None:
    """Bring MLflow in line with one study that no driver works on; repeating it changes nothing.

    Raises:
        ConfigError: there is no such study, or a driver holds it.
        TrackingError: MLflow could not be reached or refused a request; calling again sends the rest.
    """
    ledger = open_ledger(location)
    with hold(ledger):
        write_runs(location, ledger)


def is_database(location: StudyLocation) -> bool:
    """Return whether MLflow is a SQLite file, and not a server."""
    return location.tracking_uri.startswith("sqlite:///")


def rebuild(location: StudyLocation) -> str:
    """Write MLflow again from the ledger; returns a summary in one line.

    A SQLite database is renamed, and every study of the storage is written into a new one; the next run of each study
    registers its model there.  On a server, the runs of this study alone are deleted and written again.

    Raises:
        ConfigError, TrackingError: as `sync`; databases are unchanged if a study of the storage is in use.
    """
    if is_database(location):
        return rebuild_database(location)
    from search.tracking.run_reader import delete_runs

    ledger = open_ledger(location)
    with hold(ledger):
        deleted = delete_runs(location.tracking_uri, location.study, ledger.metadata.uid)
        write_runs(location, ledger)
    return f"{deleted} runs deleted, and written again"


def rebuild_database(location: StudyLocation) -> str:
    """Write every study of the storage into a new SQLite file, which replaces the old one when it is whole."""
    from sqlalchemy.engine import make_url

    open_ledger(location)
    stored = open_store(location.storage).folders()  # a shared ledger may know studies of other storages
    path = Path(make_url(location.tracking_uri).database or "").absolute()
    # A name of its own each time: within a process, MLflow keeps connections to a file it once had under an address.
    unfinished = path.with_name(f"{path.name}.rebuild-{uuid.uuid4().hex}")
    uri = f"sqlite:///{unfinished}"
    places = [
        replace(location, study=name, tracking_uri=uri)
        for name in study_names(location.storage, location.shared_ledger)
        if name in stored
    ]
    with ExitStack() as stack:
        ledgers = [open_ledger(other) for other in places]
        for ledger in ledgers:
            stack.enter_context(hold(ledger))
            started_metadata(location, ledger)
        for leftover in (*path.parent.glob(f"{path.name}.rebuild-*"), *path.parent.glob(f".{path.name}.rebuild-*")):
            leftover.unlink()  # of a call that was killed
        for other, ledger in zip(places, ledgers, strict=True):
            write_runs(other, ledger)
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
        stack.enter_context(ledger.lock())
    except LockedError as error:
        raise ConfigError(str(error)) from None
    return stack


def write_runs(location: StudyLocation, ledger: Ledger) -> None:
    """Bring MLflow in line with a study whose lock is held."""
    metadata = started_metadata(location, ledger)
    files = {f"report/{name}": location.report_store.get(name) for name in location.report_store.list()}
    reconcile(ledger, location, metadata, files=files)


def started_metadata(location: StudyLocation, ledger: Ledger) -> StudyMetadata:
    """Return a study's metadata as its last run recorded them; raises ConfigError where no run did."""
    metadata = ledger.metadata
    if not metadata.study:
        raise ConfigError(
            f"study {location.study} was never started, so there is nothing to send; run search.run, or delete it"
        )
    return metadata


def reconcile(
    ledger: LedgerReader,
    location: StudyLocation,
    metadata: StudyMetadata,
    *,
    phase: Phase = "finished",
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Bring MLflow in line with the ledger, in this thread; repeating it changes nothing.

    Args:
        phase: "running" leaves open trials RUNNING, the others close them as KILLED.
        files: contents by name, logged to the study's run.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with environment():
        try:
            writer = StudyRunWriter(ledger, location, metadata)
            writer.write_all(phase)
            for name, data in files.items():
                writer.write_file(name, data)
        except Exception as error:
            # `from None`, since MLflow's own message may hold the address with its password.
            address = public_address(location.tracking_uri)
            raise TrackingError(f"MLflow at {address}: {explain(error)}") from None
