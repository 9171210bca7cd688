"""Check a study's files: checkpoints load and agree with the ledger, and no temporary file is left."""

import json
from collections.abc import Iterator, Sequence

from fgseg.checkpoints.checkpoint import load_checkpoint
from fgseg.checkpoints.manifest import MANIFEST, Manifest, read_blob
from fgseg.checkpoints.test_results import read_test_result
from fgseg.checkpoints.untrained_result import UNTRAINED, read_untrained
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore, Store, join, open_store
from fgseg.visual.overlays import LABELS, is_whole, overlay_epochs, read_epoch_overlays, read_overlays
from search.ledger.records import State, TrialRecord


def audit_files(
    folder: str, records: Sequence[TrialRecord], best: TrialRecord | None, open_allowed: bool
) -> Iterator[str]:
    """Yield one line per fault in a study's folder.

    Temporary files of a report are no fault, since the next report removes them.

    Args:
        folder: address of the study's folder.
        records: all trials of the ledger.
        best: the best trial, which must have a checkpoint.
        open_allowed: whether running trials may have temporary files, which their next attempt removes.
    """
    known = {str(record.number): record for record in records}
    in_flight = tuple(f"trials/{n}/" for n, r in known.items() if open_allowed and r.is_open)
    names = sorted(open_store(folder).sizes())
    for name in names:
        if name.endswith(LocalStore.SUFFIX) and not name.startswith((*in_flight, "report/")):
            yield f"{name}: a temporary file was left behind"
    for name in open_store(join(folder, "trials")).folders():
        if name not in known:
            yield f"trials/{name}: belongs to no trial of the ledger"
        else:
            store = open_store(join(folder, "trials", name))
            yield from audit_checkpoints(store, known[name])
            yield from audit_test_result(store, known[name])
            yield from audit_overlays(store, known[name])
    if UNTRAINED in names and read_untrained(open_store(folder)) is None:
        yield f"{UNTRAINED}: cannot be read; delete it, and search.report writes it again"
    if best is not None and not any(name.startswith(f"trials/{best.number}/checkpoint-") for name in names):
        yield f"trial {best.number}: the best trial has no checkpoint"


def audit_overlays(store: Store, record: TrialRecord) -> Iterator[str]:
    """Yield one line per damaged overlay image of a trial."""
    for name, data in read_overlays(store).items():
        if not is_whole(data):
            yield f"trial {record.number}: the overlay of {name} is damaged"
    for epoch in (LABELS, *overlay_epochs(record.last_epoch)):
        if read_epoch_overlays(store, epoch) is None:
            yield f"trial {record.number}: the overlays of epoch {epoch} are damaged"


def audit_checkpoints(store: Store, record: TrialRecord) -> Iterator[str]:
    """Yield one line per fault among the checkpoints of a trial."""
    manifests = []
    for name in reversed([name for name in store.list() if MANIFEST.fullmatch(name)]):
        try:
            manifest = Manifest.from_bytes(store.get(name))
            load_checkpoint(store, manifest)
        except Exception as error:  # damaged files raise many types; report the file and check the others
            if name in store.list():  # else a running driver has just deleted it
                yield f"trial {record.number}: {name} cannot be loaded: {error}"
        else:
            manifests.append(manifest)
            if (manifest.name, manifest.attempt) != (name, min(manifest.attempt, record.attempt)):
                yield f"trial {record.number}: {name} is of attempt {manifest.attempt}, epoch {manifest.epoch}"
    if manifests:
        yield from audit_history(manifests, record)


def audit_history(manifests: Sequence[Manifest], record: TrialRecord) -> Iterator[str]:
    """Yield one line per difference between the epochs of a trial's checkpoints, newest first, and those of the ledger.

    The checkpoint of a RUNNING or FAIL trial may be one epoch ahead: its worker died between writing and reporting.
    """
    for manifest in manifests:
        for saved, recorded in zip(manifest.history, record.epochs, strict=False):
            if not is_same(saved, recorded):
                yield f"trial {record.number}: {manifest.name} holds another epoch {saved.epoch} than the ledger"
    newest = manifests[0]
    finished = record.state in (State.COMPLETE, State.PRUNED)
    if finished and len(newest.history) > len(record.epochs):
        yield f"trial {record.number}: {newest.name} holds an epoch that the ledger lacks"
    if record.selected is not None and all(manifest.epoch != record.selected for manifest in manifests):
        yield f"trial {record.number}: no checkpoint is of its selected epoch {record.selected}"


def audit_test_result(store: Store, record: TrialRecord) -> Iterator[str]:
    """Yield one line per fault of a trial's test result: unreadable, damaged counts, or different from the ledger's."""
    try:
        saved = read_test_result(store)
        if saved is not None:
            read_blob(store, saved.blob)
    except Exception as error:  # as above
        yield f"trial {record.number}: its test result cannot be read: {error}"
        return
    recorded = record.test
    if recorded is not None and (saved is None or json.dumps(saved.to_json()) != json.dumps(recorded.to_json())):
        yield f"trial {record.number}: its folder holds another test result than the ledger"
    # In other states the ledger may lack it: the worker died between writing and reporting.
    if recorded is None and saved is not None and record.state is State.COMPLETE:
        yield f"trial {record.number}: its folder holds a test result that the ledger lacks"


def is_same(saved: EpochResult, recorded: EpochResult) -> bool:
    """Return whether a checkpoint's epoch is the one in the ledger.

    An epoch trained again after its checkpoint was damaged has a later attempt; the ledger keeps the first result.
    """
    trained_again = saved.epoch == recorded.epoch and saved.attempt > recorded.attempt
    return trained_again or json.dumps(saved.to_json()) == json.dumps(recorded.to_json())  # as text, NaN equals NaN
