"""Update MLflow from the ledger, or rebuild it."""

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
from search.study.location import MODEL, REGISTERED, StudyLocation
from search.tracking.client import tracking_errors
from search.tracking.optuna_studies import OptunaStudyWriter, can_show, errors_as_faults
from search.tracking.run_schema import LedgerReader, Phase
from search.tracking.run_writer import StudyRunWriter


def sync(location: StudyLocation) -> None:
    """Update MLflow from the ledger of one study that no driver runs.  May be repeated.

    Raises:
        ConfigError: there is no such study, or a driver runs it.
        TrackingError: MLflow could not be reached or refused a request; repeating the call sends the rest.
    """
    ledger = open_ledger(location)
    with hold(ledger):
        write_runs(location, ledger)


def is_database(location: StudyLocation) -> bool:
    """Return whether MLflow is a SQLite file rather than a server."""
    return location.tracking_uri.startswith("sqlite:///")


def rebuild(location: StudyLocation) -> str:
    """Rebuild MLflow from the ledger; returns a summary in one line.

    A SQLite database is renamed, and every study of the storage is written into a new one; the next run of each study
    registers its model there.  On a server, only the runs of this study are deleted and written again.

    Raises:
        ConfigError, TrackingError: as `sync`; databases are unchanged if a study of the storage is in use.
    """
    if is_database(location):
        return rebuild_database(location)
    from search.tracking.run_reader import delete_runs
    from search.tracking.trial_models import delete_models

    ledger = open_ledger(location)
    with hold(ledger):
        uid = started_metadata(location, ledger).uid
        delete_models(location.tracking_uri, location.study, uid)
        deleted = delete_runs(location.tracking_uri, location.study, uid)
        write_runs(location, ledger)
    return f"{deleted} runs deleted, and written again"


def rebuild_database(location: StudyLocation) -> str:
    """Write every study of the storage into a new SQLite file, which replaces the old one when it is whole."""
    from sqlalchemy.engine import make_url

    open_ledger(location)
    stored = open_store(location.storage).folders()  # a shared ledger may know studies of other storages
    path = Path(make_url(location.tracking_uri).database or "").absolute()
    # A new name for each call: MLflow 3 caches connections by address, also to a file that has been renamed.
    unfinished = path.with_name(f"{path.name}.rebuild-{uuid.uuid4().hex}")
    uri = f"sqlite:///{unfinished}"
    locations = [
        replace(location, study=name, tracking_uri=uri)
        for name in study_names(location.storage, location.shared_ledger)
        if name in stored
    ]
    with ExitStack() as stack:
        ledgers = [open_ledger(other) for other in locations]
        for other, ledger in zip(locations, ledgers, strict=True):
            stack.enter_context(hold(ledger))
            started_metadata(other, ledger)
        for leftover in (*path.parent.glob(f"{path.name}.rebuild-*"), *path.parent.glob(f".{path.name}.rebuild-*")):
            leftover.unlink()  # from a call that was killed
        for other, ledger in zip(locations, ledgers, strict=True):
            write_runs(other, ledger)
            open_store(join(other.folder, MODEL)).delete(REGISTERED)
        backup = move_aside(path)
        unfinished.rename(path)
        unfinished.with_name(f".{unfinished.name}.lock").unlink(missing_ok=True)
    kept = f"; the old database is now {backup}" if backup else ""
    studies = "1 study" if len(locations) == 1 else f"{len(locations)} studies"
    return f"{studies} written into a new {path}{kept}"


def move_aside(path: Path) -> Path | None:
    """Rename a SQLite file and its journal files to the first free `<name>.bak<n>`; returns the new path, or None."""
    if not path.exists():
        return None
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{number}")).exists():
        number += 1
    for suffix in ("-journal", "-wal", "-shm"):  # SQLite needs the journal to recover an interrupted write
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            journal.rename(f"{backup}{suffix}")
    return path.rename(backup)


def hold(ledger: Ledger) -> ExitStack:
    """Acquire the study's lock; returns a context that releases it.  Raises ConfigError if a driver holds the lock."""
    stack = ExitStack()
    try:
        stack.enter_context(ledger.lock())
    except LockedError as error:
        raise ConfigError(str(error)) from None
    return stack


def write_runs(location: StudyLocation, ledger: Ledger) -> None:
    """Write the runs and report files of a study; the caller must hold its lock."""
    metadata = started_metadata(location, ledger)
    files = {f"report/{name}": location.report_store.get(name) for name in location.report_store.list()}
    reconcile(ledger, location, metadata, files=files)
    if can_show(location):
        with errors_as_faults(location):
            OptunaStudyWriter(ledger, location, metadata).write_all("finished")


def started_metadata(location: StudyLocation, ledger: Ledger) -> StudyMetadata:
    """Return the metadata recorded by the study's last run; raises ConfigError if the study was never run."""
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
    """Update MLflow from the ledger, in this thread.  May be repeated.

    Args:
        ledger: of the study; only read.
        location: of the study.
        metadata: of the study.
        phase: "running" leaves open trials RUNNING, other phases close them as KILLED.
        files: content by name, logged to the parent run.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with tracking_errors(location.tracking_uri):
        writer = StudyRunWriter(ledger, location, metadata)
        writer.write_all(phase)
        for name, data in files.items():
            writer.write_file(name, data)
