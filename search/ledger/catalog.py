"""Find studies and their ledgers; check by an owner file that a study's folder belongs to its ledger."""

import json
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError
from fgseg.storage.store import join, open_store
from search.study.location import LEDGER, StudyLocation, local_studies, public_address

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger

OWNER_FILE = "study.json"
"""File in a study's folder with the study's name and the uid of its ledger."""


def check_ownership(location: StudyLocation, ledger: "Ledger | None") -> None:
    """Raise ConfigError if the study's folder belongs to another study, or the study's files are in another folder.

    A folder without an owner file and without trials is accepted: a driver that died at once has not written one.

    Args:
        location: storage, ledger and name of the study.
        ledger: the study's ledger, or None if the database does not contain the study yet.
    """
    if location.shared_ledger and OWNER_FILE not in open_store(location.folder).list():
        if ledger and ledger.trials():
            raise ConfigError(
                f"--storage: the files of study {location.study} are not in {location.folder}; give the storage that "
                "it was begun with, or choose another --study"
            )
        if open_store(join(location.folder, "trials")).folders():
            raise foreign_folder_error(location)
    check_owner_file(location, ledger)


def check_owner_file(location: StudyLocation, ledger: "Ledger | None") -> None:
    """Raise ConfigError if the owner file in the study's folder names another ledger; see `check_ownership`."""
    store = open_store(location.folder)
    names = store.list()
    if OWNER_FILE in names:
        if json.loads(store.get(OWNER_FILE))["uid"] != (ledger.metadata.uid if ledger else ""):
            raise foreign_folder_error(location)
    elif location.shared_ledger and LEDGER in names:
        raise foreign_folder_error(location)


def foreign_folder_error(location: StudyLocation) -> ConfigError:
    """Return the error for a folder that belongs to another study."""
    return ConfigError(
        f"--storage: {location.folder} holds a study that is not in the ledger {public_address(location.ledger_url)}; "
        "give the --ledger-url that it was begun with, choose another --study, or remove that folder"
    )


def write_owner_file(location: StudyLocation, ledger: "Ledger") -> None:
    """Write the owner file into the study's folder unless it exists; call it with the study's lock held."""
    store = open_store(location.folder)
    if OWNER_FILE not in store.list():
        store.put(OWNER_FILE, json.dumps({"study": location.study, "uid": ledger.metadata.uid}).encode())


def find_ledger(location: StudyLocation) -> "Ledger | None":
    """Open a study's ledger for reading; None without such a study.  Raises ConfigError if its database is down."""
    from search.ledger.database import check_database
    from search.ledger.ledger import Ledger

    if location.shared_ledger:
        check_database(location.shared_ledger)
    try:
        return Ledger(location.ledger_url, location.study)
    except LookupError:
        return None


def open_ledger(location: StudyLocation) -> "Ledger":
    """Open a study's ledger for reading; raises ConfigError if the study does not exist or its database is down."""
    if (ledger := find_ledger(location)) is not None:
        return ledger
    there = public_address(location.shared_ledger or location.storage)
    names = list_or_none(study_names(location.storage, location.shared_ledger))
    raise ConfigError(f"--study: no study {location.study} in {there}; {names}")


def study_names(storage: str, shared_ledger: str | None = None) -> list[str]:
    """List the studies of a shared ledger, or without one the studies in a storage that have a ledger of their own."""
    if shared_ledger:
        from search.ledger.database import list_studies

        return list_studies(shared_ledger)
    return local_studies(storage)


def list_or_none(names: list[str]) -> str:
    """Format names as the end of an error message."""
    return f"there are: {', '.join(names)}" if names else "there are none"
