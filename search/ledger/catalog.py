"""The mark that ties a study's files to its ledger, so that a shared ledger never continues over other files."""

import json
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError
from fgseg.storage.store import join, open_store
from search.study.location import LEDGER, StudyLocation, local_studies, public_address

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger

OWNER_FILE = "study.json"


def check_ownership(location: StudyLocation, ledger: "Ledger | None") -> None:
    """Raise ConfigError where a study's folder holds the files of another one, or a study's files are elsewhere.

    Args:
        place: of the study.
        ledger: the study's, or None where the database does not know it yet.

    A folder without a mark is taken for the study's own where nothing speaks against it: a driver that died at once
    has left none.
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
    """Raise ConfigError where a study's folder says that it is another one's; arguments as for `check_mark`."""
    store = open_store(location.folder)
    names = store.list()
    if OWNER_FILE in names:
        if json.loads(store.get(OWNER_FILE))["uid"] != (ledger.metadata.uid if ledger else ""):
            raise foreign_folder_error(location)
    elif location.shared_ledger and LEDGER in names:
        raise foreign_folder_error(location)


def foreign_folder_error(location: StudyLocation) -> ConfigError:
    """Says that a folder's files are not those of the study that is meant."""
    return ConfigError(
        f"--storage: {location.folder} holds a study that is not in the ledger {public_address(location.ledger_url)}; "
        "give the --ledger-url that it was begun with, choose another --study, or remove that folder"
    )


def write_owner_file(location: StudyLocation, ledger: "Ledger") -> None:
    """Mark the folder as this study's, to be called with the lock held."""
    store = open_store(location.folder)
    if OWNER_FILE not in store.list():
        store.put(OWNER_FILE, json.dumps({"study": location.study, "uid": ledger.metadata.uid}).encode())


def exists(location: StudyLocation) -> bool:
    """Whether there is such a study."""
    from search.ledger.ledger import Ledger

    return Ledger.exists(location.ledger_url, location.study)


def open_ledger(location: StudyLocation) -> "Ledger":
    """The study's ledger, to be read; raises ConfigError where there is no such study or its database is away."""
    from search.ledger.database import check_database
    from search.ledger.ledger import Ledger

    if location.shared_ledger:
        check_database(location.shared_ledger)
    try:
        return Ledger(location.ledger_url, location.study)
    except LookupError:
        there = public_address(location.shared_ledger or location.storage)
        names = list_or_none(study_names(location.storage, location.shared_ledger))
        raise ConfigError(f"--study: no study {location.study} in {there}; {names}") from None


def study_names(storage: str, shared_ledger: str | None = None) -> list[str]:
    """The studies of a shared ledger, or those of a storage that keep their own."""
    if shared_ledger:
        from search.ledger.database import list_studies

        return list_studies(shared_ledger)
    return local_studies(storage)


def list_or_none(names: list[str]) -> str:
    """The names that there are, as the end of an error."""
    return f"there are: {', '.join(names)}" if names else "there are none"
