"""Check the ledger of a study against its checkpoints and MLflow."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fgseg.results import select_epoch
from fgseg.storage.store import Store
from fgseg.visual.overlays import read_epoch_overlays
from search.ledger.catalog import open_ledger
from search.ledger.records import State, TrialRecord, kept_trials
from search.ledger.untrained import untrained_of
from search.study.location import StudyLocation, find_location, public_address
from search.study.objective import value_of
from search.study.plan import CONFIRMED
from search.tracking.epoch_images import recorded_overlay_epochs


def audit(
    storage: str | Path,
    study: str,
    tracking_uri: str | None = None,
    ledger_url: str | None = None,
    *,
    trials: int | None = None,
    interrupted: bool = False,
    tracking: bool = True,
) -> list[str]:
    """Return one line per broken invariant of a study; an empty list means that all checks passed.

    While a driver runs the study, it is checked as with `interrupted`; for the full check wait until the driver ends.

    Args:
        storage: folder of studies.
        study: name of the study.
        tracking_uri: MLflow server or database; by default the one in the storage.
        ledger_url: database of the ledger; by default the one of the study.
        trials: exact number of ended trials; by default at least the budget of the last run.
        interrupted: allow running trials, and MLflow runs that lack the last events.
        tracking: whether to check MLflow.

    Raises:
        ConfigError: the study or the storage does not exist.
        LedgerError, ObjectStoreError: the ledger's database or the bucket fails.
    """
    return list(audit_location(find_location(storage, study, tracking_uri, ledger_url), trials, interrupted, tracking))


def audit_location(location: StudyLocation, trials: int | None, interrupted: bool, tracking: bool) -> Iterator[str]:
    """Yield the lines of `audit` for a study's location."""
    ledger = open_ledger(location)
    alive = ledger.holder() is not None
    open_allowed = interrupted or alive
    # MLflow before the ledger: a running driver writes the ledger first, so the ledger then has all that MLflow has.
    nothing: tuple[None, list[Any], None] = (None, [], None)
    runs, models, unread = read_mlflow(location, ledger.metadata.uid, open_allowed) if tracking else nothing
    try:
        records = ledger.trials()
    except (KeyError, TypeError, ValueError) as error:
        yield f"the ledger contains an invalid epoch or trial: {error!r}"
        return
    yield from audit_numbers(records)
    stopped = bool(ledger.metadata.limit)  # by --max-hours or --max-gpu-hours
    yield from audit_budget(records, ledger.metadata.budget, trials, open_allowed or stopped)
    for record in records:
        yield from audit_trial(record, tested=not location.study.endswith(CONFIRMED))
        rule = ledger.metadata.settings_at(record.number).get("train.select", "last")
        yield from audit_value(record, ledger.metadata.objectives, rule)
    best = ledger.best(records)
    if not alive:  # a running driver changes the files while they are read
        from search.audit.files import audit_files  # imports torch, which takes seconds: only after cheap checks

        yield from audit_files(location.folder, records, best, open_allowed or stopped)
    if runs is not None:
        from search.audit.mlflow_models import audit_models
        from search.audit.mlflow_runs import audit_images, audit_runs

        untrained = untrained_of(location, ledger.metadata)
        yield from audit_runs(runs, records, best, untrained, open_allowed)
        kept = kept_trials(records, best, ledger.metadata.keep_checkpoints, ledger.metadata.constraint.floors)
        has_models = ledger.metadata.keep_checkpoints > 0  # earlier versions wrote none until search.sync is run
        yield from audit_models(models, records, kept, behind=open_allowed or not has_models)
        if not open_allowed:
            saved = {record.number: saved_overlays(location.trial_store(record.number), record) for record in records}
            yield from audit_images(runs, saved)
    if unread:
        yield unread


def read_mlflow(location: StudyLocation, uid: str, behind: bool) -> "tuple[list[Any] | None, list[Any], str | None]":
    """Read the study's runs and models in MLflow; returns the runs or None, the models, and the reason or None."""
    from search.ledger.database import has_database
    from search.tracking.client import TrackingError
    from search.tracking.run_reader import read_runs
    from search.tracking.trial_models import read_models

    if not has_database(location.tracking_uri) and not behind:
        address = public_address(location.tracking_uri)
        return None, [], f"MLflow not audited: there is no {address}; search.sync writes it"
    try:
        runs = read_runs(location.tracking_uri, location.study, uid)
        return runs, read_models(location.tracking_uri, location.study, uid), None
    except TrackingError as error:
        return None, [], f"MLflow not audited: {str(error).removeprefix('MLflow ')}"


def saved_overlays(store: Store, record: TrialRecord) -> set[int]:
    """Return the recorded epochs of which a trial's folder has undamaged overlays."""
    return {epoch for epoch in recorded_overlay_epochs(record) if read_epoch_overlays(store, epoch)}


def audit_numbers(records: Sequence[TrialRecord]) -> Iterator[str]:
    """Check that the trial numbers are 0, 1, 2, ... without gaps or repetitions, in the order of their first writes."""
    numbers = [record.number for record in records]
    if sorted(numbers) != list(range(len(numbers))):
        yield f"the trial numbers are {sorted(numbers)}, must be 0 to {len(numbers) - 1}, each once"
    for before, after in pairwise(records):
        if after.asked_seq <= before.asked_seq:
            earlier = f"trial {before.number} by {before.asked_seq}"
            yield f"trial {after.number}: was added by write {after.asked_seq}, {earlier}"


def audit_budget(
    records: Sequence[TrialRecord], recorded: int, trials: int | None, open_allowed: bool
) -> Iterator[str]:
    """Check that the budget's number of trials has ended, and that none is open unless allowed.

    More trials than the recorded budget are allowed, since a budget may be lowered; `trials` must be met exactly.
    """
    opened = [record.number for record in records if record.is_open]
    ended, budget = len(records) - len(opened), trials or recorded
    if opened and not open_allowed:
        yield f"interrupted: {len(opened)} open (trials {', '.join(map(str, opened))}), and no driver is alive"
    if (ended < budget and not open_allowed) or (trials and ended > trials):
        yield f"{ended} trials have ended, the budget says {budget}"
    if not budget and not open_allowed:
        yield "the ledger contains no budget: its driver died before it recorded one"


def audit_trial(record: TrialRecord, tested: bool = True) -> Iterator[str]:
    """Check one trial: its epochs, their attempts, and whether its state fits them.

    Args:
        record: of the trial.
        tested: whether a repeat is evaluated on the test split; false for the repeats of --confirm.
    """
    epochs, total = [epoch.epoch for epoch in record.epochs], record.length
    faults = {
        f"its epochs are {epochs}, must be 1 to {len(epochs)}, each once": epochs != list(range(1, len(epochs) + 1)),
        f"has {len(epochs)} epochs, its settings say {total}": len(epochs) > total,
        f"COMPLETE with {len(epochs)} of {total} epochs": record.state is State.COMPLETE and len(epochs) != total,
        f"PRUNED after its last epoch, {total}": record.state is State.PRUNED and len(epochs) == total,
        "COMPLETE without a result on the test split": record.state is State.COMPLETE
        and record.repeat is not None
        and tested
        and record.test is None,
        "evaluated on the test split, which a search must not use": (record.repeat is None or not tested)
        and record.test is not None,
        f"{record.state.name} without a reason": record.state in (State.PRUNED, State.FAIL) and not record.reason,
        f"{record.state.name} with a value and a selected epoch": record.state is not State.COMPLETE
        and (record.value is not None or record.selected is not None),
        f"ended as {record.state.name} without ever being started": record.ended is not None and record.attempt == 0,
    }
    yield from (f"trial {record.number}: {text}" for text, broken in faults.items() if broken)
    yield from (f"trial {record.number}: {text}" for text in audit_attempts(record))
    yield from audit_order(record)


def audit_value(record: TrialRecord, objectives: Sequence[str], rule: str) -> Iterator[str]:
    """Check the selected epoch of a trial, and that its value is the first objective there, of which it has all.

    Args:
        record: of the trial.
        objectives: of the study.
        rule: the setting `train.select`.
    """
    chosen = record.chosen
    if chosen is None:
        if record.state is State.COMPLETE:
            yield f"trial {record.number}: its selected epoch {record.selected} is not in the ledger"
        return
    values = [value_of(chosen, name) for name in objectives]
    if chosen is not select_epoch(record.epochs, rule):
        yield f"trial {record.number}: its selected epoch is {chosen.epoch}, which train.select={rule} does not select"
    if record.value != values[0]:
        yield f"trial {record.number}: its value is {record.value}, that of epoch {chosen.epoch} is {values[0]}"
    for name in (name for name, value in zip(objectives, values, strict=True) if not math.isfinite(value)):
        yield f"trial {record.number}: COMPLETE without a value of {name} in epoch {chosen.epoch}"


def audit_attempts(record: TrialRecord) -> Iterator[str]:
    """Yield one line per epoch whose attempt was not the current one: superseded, or never started.

    An epoch has two: that of its training and that of its report.
    """
    last = 1
    for epoch, event in zip(record.epochs, record.epoch_events, strict=True):
        if not epoch.attempt <= event.attempt <= record.attempt:
            bounds = f"{epoch.attempt} to {record.attempt}"
            yield f"epoch {epoch.epoch} was reported by attempt {event.attempt}, must be one of {bounds}"
        if not last <= epoch.attempt <= record.attempt:
            yield f"epoch {epoch.epoch} is of attempt {epoch.attempt}, must be one of {last} to {record.attempt}"
        last = max(last, epoch.attempt)


def audit_order(record: TrialRecord) -> Iterator[str]:
    """Check that the numbers of a trial's writes ascend: its start, its epochs and decisions, and its end."""
    of_epochs = [seq for event in record.epoch_events for seq in (event.seq, event.stop_seq) if seq is not None]
    numbers = [record.asked_seq, *of_epochs, *([] if record.ended_seq is None else [record.ended_seq])]
    if numbers != sorted(numbers):
        yield f"trial {record.number}: its writes have the numbers {numbers}, must ascend"
    if (record.ended_seq is None) != record.is_open:
        has = "without" if record.ended_seq is None else "with"
        yield f"trial {record.number}: {record.state.name} {has} the number of a write that ended it"
