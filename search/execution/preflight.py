"""Check data, weights, storage and cluster of a run before anything is written."""

from typing import Any

from rich.console import Console

from fgseg.config.errors import ConfigError
from fgseg.data import FrameSet, data_notes, fingerprint, load_splits
from fgseg.data import check as check_data
from fgseg.model.class_names import new_head_note
from fgseg.model.pretrained import check_weights, fetch_weights
from fgseg.storage.store import check_store, open_store
from search.cluster.node_checks import connect
from search.console.decoding import read_splits
from search.execution.constraint import check_reference
from search.execution.warm_start import warm_points
from search.ledger.catalog import check_ownership, find_ledger
from search.study.identity import check_identity
from search.study.objective import classes_of
from search.study.plan import Plan, RepeatPlan, absolute
from search.study.resources import gpu_needed

PROBE = "write-test"
"""Name of the blob that `make_folder` writes and deletes."""


def preflight(plan: Plan, console: Console) -> dict[str, Any]:
    """Check a run before anything is written, and return the study's identity.

    The weights of a hub model are downloaded into the cache.  May be repeated.

    Raises:
        ConfigError: the first mistake, in the order of `check_plan`, connection to the cluster, content of the data's
            files, nodes of the cluster.
    """
    settings = plan.settings
    recorded, warm = check_plan(plan)
    with connect(plan.search, gpu_needed(settings)) as cluster:
        splits = read_splits(settings.data, plan.splits, console)
        check_measurable(plan, splits["val"])
        identity = plan.identity | warm | {"data": fingerprint(splits)}
        check_identity(recorded, identity, plan)
        fetch_weights(settings.model.name)
        if cluster is not None:
            with console.status(f"checking the {len(cluster.nodes)} nodes of the cluster"):
                cluster.check_nodes(identity["data"], plan.splits, absolute(settings.flat()), plan.location.storage)
    return identity


def check_plan(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check a run as far as that needs no download, no cluster and not the content of the data's files.

    Returns:
        The study's recorded identity, empty for a new study; and the `warm_points` of --warm-start, if it is given.

    Raises:
        ConfigError: the first mistake, in the order space, study, --confirm, --warm-start, data, model, storage,
            --keep.
    """
    check_searched(plan)
    recorded = recorded_identity(plan)
    check_identity(recorded, plan.identity, plan)
    check_trials_left(plan)
    warm = {"warm_points": warm_points(plan, recorded)} if "warm_start" in plan.identity.get("space", {}) else {}
    check_data(plan.settings.data)
    check_weights(plan.settings.model.name)
    check_store(plan.location.folder, "--storage")
    check_reference(plan)
    return recorded, warm


def check_searched(plan: Plan) -> None:
    """Raise ConfigError for a search of several trials without a searched setting, which would train one point only."""
    if plan.space.search or isinstance(plan, RepeatPlan) or plan.search.trials == 1:
        return
    raise ConfigError(
        f"--space {plan.space.name}: no setting is searched, so that all {plan.search.trials} trials would train one "
        "point: --set fixes every range, or the ranges are of the class weights of thin classes and no class has "
        "`thin: true`; add a range under search.space, or give --trials 1"
    )


def check_trials_left(plan: Plan) -> None:
    """Raise ConfigError if the trials of a started search leave no room for the repeats of --confirm."""
    ledger = find_ledger(plan.location) if plan.search.confirm else None
    had = len(ledger.trials()) if ledger else 0
    if had > plan.search.search_trials:
        raise ConfigError(
            f"--confirm {plan.search.confirm} --confirm-seeds {plan.search.confirm_seeds}: study {plan.study} has "
            f"{had} trials, and --trials {plan.search.trials} counts the repeats too; give --trials "
            f"{had + plan.search.repeats} or more"
        )


def check_measurable(plan: Plan, frames: FrameSet) -> None:
    """Raise ConfigError if the validation frames have none of an objective's classes: it would have no value."""
    classes = plan.settings.label_set()
    absent = frames.absent(classes)
    for name in plan.search.objectives:
        measured = classes_of(name, classes)
        if all(c in absent for c in measured):
            missing = ", no ".join(c.name for c in measured)
            raise ConfigError(
                f"--objective {name}: the {len(frames)} validation frames hold no {missing}; raise data.val, change "
                "data.seed, or choose another objective"
            )


def print_notes(plan: Plan, console: Console) -> None:
    """Print the lines of `fgseg.data.data_notes`, and whether the head is new; the frames must be in the cache."""
    notes = data_notes(plan.settings.data, load_splits(plan.settings.data, plan.splits))
    for note in [*notes, new_head_note(plan.settings.model, plan.settings.label_set())]:
        if note:
            console.print(note, soft_wrap=True, highlight=False, markup=False)


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
    ledger = find_ledger(plan.location)
    check_ownership(plan.location, ledger)
    return dict(ledger.metadata.identity) if ledger else {}
