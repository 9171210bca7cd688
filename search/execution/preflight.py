"""Find every mistake of the user's before anything is written."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.status import Status

from fgseg.config.errors import ConfigError
from fgseg.data import check as check_data
from fgseg.data import fingerprint, load_splits
from fgseg.model.pretrained import check_weights, fetch_weights
from fgseg.storage.store import check_store, open_store
from search.cluster.node_checks import connect
from search.ledger.catalog import check_ownership
from search.ledger.database import check_database
from search.ledger.ledger import Ledger
from search.study.plan import Plan, absolute, check_identity
from search.study.resources import gpu_needed

PROBE = "write-test"
"""A blob that is written and deleted at once before a study begins."""


def preflight(plan: Plan, console: Console) -> dict[str, Any]:
    """Find every mistake before anything is written; returns the study's identity.

    Raises:
        ConfigError: the first mistake, in the order study, data, model, storage; then a cluster that is not there,
            those inside the data's files, and nodes of the cluster that differ.
    """
    settings = plan.settings
    recorded = recorded_identity(plan)
    check_identity(recorded, plan.identity, plan)
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
            with console.status(f"asking the {len(cluster.nodes)} nodes of the cluster"):
                cluster.check_nodes(identity["data"], plan.splits, absolute(settings.flat()), plan.location.storage)
    return identity


def decoding_progress(console: Console, status: Status) -> Callable[[str, int, int], None]:
    """Shows how far the frames of a split are decoded: live on a terminal, elsewhere a line every tenth."""

    def show(split: str, done: int, total: int) -> None:
        text = f"decoding the {split} frames: {done} of {total}"
        if console.is_terminal:
            status.update(text)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            console.print(text, highlight=False)

    return show


def make_folder(folder: str) -> None:
    """Write into the study's folder, and create it; raises ConfigError where the system or the bucket refuses."""
    store = open_store(folder)
    try:
        store.put(PROBE, b"")
        store.delete(PROBE)
    except OSError as error:
        fault = error.strerror or error
        raise ConfigError(f"--storage: {folder} cannot be made ({fault}); choose another --storage") from None


def recorded_identity(plan: Plan) -> dict[str, Any]:
    """The identity under which the study was begun; empty where there is no such study yet."""
    if plan.search.ledger_url:
        check_database(plan.location.ledger_url)
    if not Ledger.exists(plan.location.ledger_url, plan.study):
        check_ownership(plan.location, None)
        return {}
    ledger = Ledger(plan.location.ledger_url, plan.study)
    check_ownership(plan.location, ledger)
    return dict(ledger.metadata.identity)
