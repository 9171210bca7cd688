"""Check data, weights, storage and cluster of a run before anything is written."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.status import Status

from fgseg.config.errors import ConfigError
from fgseg.data import check as check_data
from fgseg.data import data_notes, fingerprint, load_splits
from fgseg.model.pretrained import check_weights, fetch_weights
from fgseg.storage.store import check_store, open_store
from search.cluster.node_checks import connect
from search.execution.constraint import check_reference
from search.ledger.catalog import check_ownership
from search.ledger.database import check_database
from search.ledger.ledger import Ledger
from search.study.plan import Plan, absolute, check_identity
from search.study.resources import gpu_needed

PROBE = "write-test"
"""Name of the blob that `make_folder` writes and deletes."""


def preflight(plan: Plan, console: Console) -> dict[str, Any]:
    """Check a run before anything is written, and return the study's identity.

    The weights of a hub model are downloaded into the cache.  May be repeated.

    Raises:
        ConfigError: the first mistake, in the order study, constraint, data, model, storage, connection to the cluster,
            content of the data's files, nodes of the cluster.
    """
    settings = plan.settings
    recorded = recorded_identity(plan)
    check_identity(recorded, plan.identity, plan)
    check_reference(plan)
    check_data(settings.data)
    check_weights(settings.model.name)
    check_store(plan.location.folder, "--storage")
    with connect(plan.search, gpu_needed(settings)) as cluster:
        with console.status("reading the data") as status:
            splits = load_splits(settings.data, plan.splits, decoding_progress(console, status))
        identity = plan.identity | {"data": fingerprint(splits)}
        check_identity(recorded, identity, plan)
        fetch_weights(settings.model.name)
        if cluster is not None:
            with console.status(f"checking the {len(cluster.nodes)} nodes of the cluster"):
                cluster.check_nodes(identity["data"], plan.splits, absolute(settings.flat()), plan.location.storage)
    return identity


def print_data_notes(plan: Plan, console: Console) -> None:
    """Print the lines of `fgseg.data.data_notes`; the frames must be in the cache, see `preflight`."""
    for note in data_notes(plan.settings.data, load_splits(plan.settings.data, plan.splits)):
        console.print(note, soft_wrap=True, highlight=False, markup=False)


def decoding_progress(console: Console, status: Status) -> Callable[[str, int, int], None]:
    """Return a callback that shows the progress of decoding.

    The callback takes a split, the decoded frames and all frames.  It updates a line on a terminal, and otherwise
    prints a line per tenth.
    """

    def show(split: str, done: int, total: int) -> None:
        text = f"decoding the {split} frames: {done} of {total}"
        if console.is_terminal:
            status.update(text)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            console.print(text, highlight=False)

    return show


def make_folder(folder: str) -> None:
    """Create the study's folder; raises ConfigError if it cannot be written."""
    store = open_store(folder)
    try:
        store.put(PROBE, b"")
        store.delete(PROBE)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--storage: {folder} cannot be created ({reason}); choose another --storage") from None


def recorded_identity(plan: Plan) -> dict[str, Any]:
    """Return the study's recorded identity; empty if the study does not exist.

    Raises ConfigError if the database cannot be used or the folder belongs to another study.
    """
    if plan.search.ledger_url:
        check_database(plan.location.ledger_url)
    if not Ledger.exists(plan.location.ledger_url, plan.study):
        check_ownership(plan.location, None)
        return {}
    ledger = Ledger(plan.location.ledger_url, plan.study)
    check_ownership(plan.location, ledger)
    return dict(ledger.metadata.identity)
