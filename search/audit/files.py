"""Are the files of a study whole?  Its checkpoints load and agree with the ledger, and nothing half written is left."""

import json
from collections.abc import Iterator, Sequence

from fgseg.checkpoints.checkpoint import load_checkpoint
from fgseg.checkpoints.manifest import MANIFEST, Manifest, read_blob
from fgseg.checkpoints.test_results import read_test_result
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore, Store, join, open_store
from fgseg.visual.overlays import is_whole, read_overlays
from search.ledger.records import State, TrialRecord


def audit_files(
    folder: str, records: Sequence[TrialRecord], best: TrialRecord | None, open_allowed: bool
) -> Iterator[str]:
    """Each fault of a study's folder as one line.

    Args:
        folder: address of the study's folder.
        records: all trials of the ledger.
        best: the best of them, whose weights must be there.
        open_allowed: an open trial may hold a half-written file, which its next start sweeps away.

    A half-written file of a report is no fault: the next report sweeps it away.
    """
    known = {str(record.number): record for record in records}
    in_flight = tuple(f"trials/{n}/" for n, r in known.items() if open_allowed and r.state is State.RUNNING)
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
            yield from audit_outcome(store, known[name])
            yield from audit_overlays(store, known[name])
    if best is not None and not any(name.startswith(f"trials/{best.number}/checkpoint-") for name in names):
        yield f"trial {best.number}: the best trial has no checkpoint"


def audit_overlays(store: Store, record: TrialRecord) -> Iterator[str]:
    """Whether the pictures of a trial are whole."""
    for name, data in read_overlays(store).items():
        if not is_whole(data):
            yield f"trial {record.number}: the overlay of {name} is damaged"


def audit_checkpoints(store: Store, record: TrialRecord) -> Iterator[str]:
    """Each fault among the checkpoints of one trial."""
    manifests = []
    for name in reversed([name for name in store.list() if MANIFEST.fullmatch(name)]):
        try:
            manifest = Manifest.from_bytes(store.get(name))
            load_checkpoint(store, manifest)
        except Exception as error:  # whatever a damaged file leads to, it is to be named and the rest looked at
            if name in store.list():  # else a driver at work has just dropped it
                yield f"trial {record.number}: {name} cannot be loaded: {error}"
        else:
            manifests.append(manifest)
            if (manifest.name, manifest.attempt) != (name, min(manifest.attempt, record.attempt)):
                yield f"trial {record.number}: {name} is of attempt {manifest.attempt}, epoch {manifest.epoch}"
    if manifests:
        yield from audit_history(manifests, record)


def audit_history(manifests: Sequence[Manifest], record: TrialRecord) -> Iterator[str]:
    """Whether a trial's newest checkpoint tells the epochs that the ledger tells.

    It may be one epoch ahead where the trial is open or failed: its worker died between writing and reporting.
    """
    newest = manifests[0]
    for mine, booked in zip(newest.history, record.epochs, strict=False):
        if not is_same(mine, booked):
            yield f"trial {record.number}: {newest.name} holds another epoch {mine.epoch} than the ledger"
    settled = record.state in (State.COMPLETE, State.PRUNED)
    if settled and len(newest.history) > len(record.epochs):
        yield f"trial {record.number}: {newest.name} holds an epoch that the ledger lacks"
    if record.selected is not None and all(manifest.epoch != record.selected for manifest in manifests):
        yield f"trial {record.number}: no checkpoint is of epoch {record.selected}, which stands for the trial"


def audit_outcome(store: Store, record: TrialRecord) -> Iterator[str]:
    """Whether a trial's folder and the ledger agree on what the test split said, and the counts behind it are whole."""
    try:
        outcome = read_test_result(store)
        if outcome is not None:
            read_blob(store, outcome.blob)
    except Exception as error:  # as above: whatever it is, it is to be named
        yield f"trial {record.number}: what the test split said cannot be read: {error}"
        return
    # A worker that died between writing and reporting left an outcome of which an ended trial's ledger may not know.
    booked = record.test
    if booked is not None and (outcome is None or json.dumps(outcome.to_json()) != json.dumps(booked.to_json())):
        yield f"trial {record.number}: its folder tells another outcome of the test split than the ledger"
    if booked is None and outcome is not None and record.state is State.COMPLETE:
        yield f"trial {record.number}: its folder holds an outcome of the test split that the ledger lacks"


def is_same(mine: EpochResult, booked: EpochResult) -> bool:
    """Whether two records are of one epoch.

    One that was done again, since its checkpoint was damaged, has a later attempt; the ledger keeps the first.
    """
    done_again = mine.epoch == booked.epoch and mine.attempt > booked.attempt
    return done_again or json.dumps(mine.to_json()) == json.dumps(booked.to_json())  # as text, NaN equals NaN
