"""The invariants of a study: of the history of its ledger, of MLflow after every request, and of its end."""

from collections.abc import Iterator, Sequence
from typing import Any

from fgseg.checkpoints.manifest import find, weights_blob
from fgseg.checkpoints.trial_files import WEIGHTS
from fgseg.storage.store import open_store
from scripts.chaos.simulated_database import Change, Database
from search.audit.trials import audit_location
from search.export.model import model_origin, read_origin
from search.ledger.catalog import open_ledger
from search.study.location import MODEL
from search.study.plan import Plan
from search.tracking.run_reader import trial_number


def check_history(history: Sequence[Change], budget: int) -> Iterator[str]:
    """Check every change of the ledger.

    Each trial number is added once, in order, within the budget, and its point never changes; attempts count up by
    one; each epoch is written once, in order, by the current attempt, and never changes; so do the pruner's decisions
    and ended trials.
    """
    attempts: dict[int, int] = {}
    epochs: dict[int, int] = {}
    for change in history:
        number, epoch = change.number, change.epoch
        if change.what == "asked":
            if number != len(attempts):
                yield f"trial {number} was added after {len(attempts)} trials"
            if number >= budget:
                yield f"trial {number} exceeds the budget of {budget}"
            attempts[number], epochs[number] = 1, 0
        elif change.what == "attempt":
            if int(change.after) != attempts[number] + 1:
                yield f"trial {number}: attempt {change.after} came after {attempts[number]}"
            attempts[number] = int(change.after)
        elif change.what == "epoch":
            if int(change.after) != attempts[number]:
                yield f"trial {number}: epoch {epoch} of attempt {change.after} was accepted in {attempts[number]}"
            if epoch != epochs[number] + 1:
                yield f"trial {number}: epoch {epoch} came after {epochs[number]}"
            epochs[number] += 1
        else:
            yield f"trial {number}, epoch {epoch}: {change.what}, {change.before} to {change.after}"


def check_run(run: Any, database: Database) -> Iterator[str]:
    """Check that a run of MLflow is not ahead of the ledger."""
    if run.data.tags["fgseg.kind"] == "study":
        yield from check_best(run, database)
    if run.data.tags["fgseg.kind"] != "trial":
        return
    study, number = run.data.tags["fgseg.study"], trial_number(run)
    state = database.state_of(study, number)
    if state is None or state != {"FINISHED": "complete", "FAILED": "fail"}.get(run.info.status, state):
        yield f"trial {number}: MLflow says {run.info.status}, the ledger {state}"
    shown = [image for image, is_whole in run.images if is_whole]
    if len(set(shown)) < len(shown):
        yield f"trial {number}: MLflow shows an image twice: {shown}"
    if "fgseg.pruned" in run.data.tags and state != "pruned":
        yield f"trial {number}: MLflow says that it was pruned, the ledger {state}"
    for metric in run.history.get("val/miou", ()):
        if (miou := database.miou_of(study, number, metric.step)) != metric.value:
            yield f"trial {number}: MLflow has mIoU {metric.value} in epoch {metric.step}, the ledger {miou}"


def check_best(run: Any, database: Database) -> Iterator[str]:
    """Check that the best trial that MLflow names is complete in the ledger, as the metrics of the parent run say."""
    best = run.data.tags.get("fgseg.best_trial")
    if best is not None and (state := database.state_of(run.data.tags["fgseg.study"], int(best))) != "complete":
        yield f"trial {best}: MLflow says that it is the best, the ledger {state}"


def check_end(plan: Plan) -> Iterator[str]:
    """Check an ended study: the audit finds nothing, and the exported model is the best trial's."""
    yield from audit_location(plan.location, plan.search.trials, interrupted=False, tracking=True)
    ledger = open_ledger(plan.location)
    best = ledger.best()
    if best is None:
        return
    store, folder = plan.location.trial_store(best.number), f"{plan.location.folder}/{MODEL}"
    manifest = find(store, best.selected)
    exported = read_origin(folder)
    expected = manifest and model_origin(ledger.metadata, best.number, manifest)
    if exported != expected:
        yield f"the exported model is {exported}, the best trial's is {expected}"
    elif manifest and open_store(folder).get(WEIGHTS) != store.get(weights_blob(manifest).name):
        yield "the exported weights are not those of the best trial's checkpoint"
