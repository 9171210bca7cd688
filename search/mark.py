"""The mark that ties a study's files to its ledger, so that a shared ledger never continues over other files."""

import json

from fgseg.config.errors import ConfigError
from fgseg.storage.store import join, open_store
from search.ledger import Ledger
from search.study.location import LEDGER, Place, public_address

MARK = "study.json"


def check_mark(place: Place, ledger: Ledger | None) -> None:
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


def check_owner(place: Place, ledger: Ledger | None) -> None:
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


def leave_mark(place: Place, ledger: Ledger) -> None:
    """Mark the folder as this study's, to be called with the lock held."""
    store = open_store(place.folder)
    if MARK not in store.list():
        store.put(MARK, json.dumps({"study": place.study, "uid": ledger.uid}).encode())
