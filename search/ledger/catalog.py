"""The mark that ties a study's files to its ledger, so that a shared ledger never continues over other files."""

import json
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError
from fgseg.storage.store import join, open_store
from search.study.location import LEDGER, Place, local_studies, public_address

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger

MARK = "study.json"


def check_mark(place: Place, ledger: "Ledger | None") -> None:
    """Raise ConfigError where a study's folder holds the files of another one, or a study's files are elsewhere.

    Args:
        place: of the study.
        ledger: the study's, or None where the database does not know it yet.

    A folder without a mark is taken for the study's own where nothing speaks against it: a driver that died at once
    has left none.
    """
    if place.shared_ledger and MARK not in open_store(place.folder).list():
        if ledger and ledger.trials():
            raise ConfigError(
                f"--storage: the files of study {place.study} are not in {place.folder}; give the storage that it was "
                "begun with, or choose another --study"
            )
        if open_store(join(place.folder, "trials")).folders():
            raise foreign(place)
    check_owner(place, ledger)


def check_owner(place: Place, ledger: "Ledger | None") -> None:
    """Raise ConfigError where a study's folder says that it is another one's; arguments as for `check_mark`."""
    store = open_store(place.folder)
    names = store.list()
    if MARK in names:
        if json.loads(store.get(MARK))["uid"] != (ledger.uid if ledger else ""):
            raise foreign(place)
    elif place.shared_ledger and LEDGER in names:
        raise foreign(place)


def foreign(place: Place) -> ConfigError:
    """Says that a folder's files are not those of the study that is meant."""
    return ConfigError(
        f"--storage: {place.folder} holds a study that is not in the ledger {public_address(place.ledger_url)}; "
        "give the --ledger-url that it was begun with, choose another --study, or remove that folder"
    )


def leave_mark(place: Place, ledger: "Ledger") -> None:
    """Mark the folder as this study's, to be called with the lock held."""
    store = open_store(place.folder)
    if MARK not in store.list():
        store.put(MARK, json.dumps({"study": place.study, "uid": ledger.uid}).encode())


def exists(place: Place) -> bool:
    """Whether there is such a study."""
    from search.ledger.ledger import Ledger

    return Ledger.exists(place.ledger_url, place.study)


def open_ledger(place: Place) -> "Ledger":
    """The study's ledger, to be read; raises ConfigError where there is no such study or its database is away."""
    from search.ledger.database import check_database
    from search.ledger.ledger import Ledger

    if place.shared_ledger:
        check_database(place.shared_ledger)
    try:
        return Ledger(place.ledger_url, place.study)
    except LookupError:
        there = public_address(place.shared_ledger or place.storage)
        raise ConfigError(
            f"--study: no study {place.study} in {there}; {offer(study_names(place.storage, place.shared_ledger))}"
        ) from None


def study_names(storage: str, shared_ledger: str | None = None) -> list[str]:
    """The studies of a shared ledger, or those of a storage that keep their own."""
    if shared_ledger:
        from search.ledger.database import list_studies

        return list_studies(shared_ledger)
    return local_studies(storage)


def offer(names: list[str]) -> str:
    """The names that there are, as the end of an error."""
    return f"there are: {', '.join(names)}" if names else "there are none"
