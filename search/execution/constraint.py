"""The constraint of a search, --keep: what the IoU of its classes is compared with, and the floors that follow."""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import fmean
from typing import Any

from fgseg.config.errors import ConfigError, FaultError
from fgseg.config.settings import with_defaults
from fgseg.data import fingerprint, load_splits
from fgseg.model.class_names import own_labels
from search.cli.signals import Interrupted, Signals
from search.ledger.catalog import find_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import Constraint
from search.ledger.untrained import untrained_of
from search.report.build import complete_untrained
from search.study.child_process import ChildError, ChildProcess
from search.study.location import StudyLocation
from search.study.plan import REPEATS, Plan
from search.study.space import BASELINE, is_about_frames

UNTRAINED_S = 1800.0
"""Seconds that the evaluation of the untrained checkpoint may take; then the run ends with a fault."""


def check_reference(plan: Plan) -> None:
    """Raise ConfigError if --keep is given and there is nothing to compare with; writes nothing."""
    if plan.search.keep is None or baseline_repeats(plan) or has_own_result(plan):
        return
    ledger = find_ledger(plan.location)
    if ledger is not None and is_recorded(plan, ledger.metadata.constraint):
        return
    raise ConfigError(
        f"--keep {plan.search.keep}: nothing to compare with: no finished repeats of {BASELINE} on these frames, and "
        f"{plan.settings.model.name} is no checkpoint with these classes; to train them: "
        f"{shlex.join(baseline_command(plan))}"
    )


def prepare_constraint(plan: Plan, ledger: Ledger, signals: Signals) -> Constraint:
    """Return the constraint of a study, and record it unless the ledger has it; requires the lock.

    The floors do not change while --keep and --max-drop stay the same, whatever is repeated later.

    Raises:
        ConfigError: the untrained checkpoint has no result, or lacks a class.
        FaultError: the untrained checkpoint cannot be evaluated.
        Interrupted: a signal came meanwhile.
    """
    search, recorded = plan.search, ledger.metadata.constraint
    if not search.kept_classes:
        constraint = Constraint()
    elif is_recorded(plan, recorded):
        return recorded
    else:
        reference, iou = read_reference(plan, ledger, signals)
        if missing := [key for key in search.kept_classes if not math.isfinite(iou.get(key, math.nan))]:
            raise ConfigError(f"--keep: {reference} has no IoU of {', '.join(missing)}; leave them out")
        floors = {key: iou[key] - search.max_drop for key in search.kept_classes}
        constraint = Constraint(floors, search.max_drop, reference)
    if constraint != recorded:
        ledger.record_constraint(constraint)
    return constraint


def is_recorded(plan: Plan, recorded: Constraint) -> bool:
    """Return whether a recorded constraint is that of --keep and --max-drop."""
    return list(recorded.floors) == list(plan.search.kept_classes) and recorded.max_drop == plan.search.max_drop


def read_reference(plan: Plan, ledger: Ledger, signals: Signals) -> tuple[str, Mapping[str, float]]:
    """Return what the classes are compared with: its name, and its validation IoU by class key."""
    if repeats := baseline_repeats(plan):
        check_frames(plan)
        chosen = [record.chosen for record in repeats if record.chosen is not None]
        iou = {key: fmean(epoch.iou[key] for epoch in chosen) for key in chosen[0].iou}
        return f"the mean of {len(chosen)} repeats of {BASELINE}", iou
    if untrained_of(plan.location, ledger.metadata) is None:
        evaluate_untrained_in_child(plan.location, signals)
    result = untrained_of(plan.location, ledger.metadata)
    if result is None:
        raise ConfigError("--keep: the untrained checkpoint has no result, since it has none of the classes")
    return "the untrained checkpoint", result.iou


def evaluate_untrained_in_child(location: StudyLocation, signals: Signals) -> None:
    """Evaluate the untrained checkpoint of a study in a process of its own, which imports torch."""
    try:
        with ChildProcess(send_untrained, location) as child:
            problem = child.receive(UNTRAINED_S, must_stop=lambda: bool(signals.received))
    except ChildError as error:
        if signals.received:
            raise Interrupted from None
        problem = f"the untrained checkpoint cannot be evaluated: {error}"
    if problem:
        raise FaultError(f"--keep: {problem}")


def send_untrained(connection: Connection, location: StudyLocation) -> None:
    """Evaluate the untrained checkpoint, then send what went wrong, or an empty text; runs in the child."""
    connection.send(complete_untrained(location))


def has_own_result(plan: Plan) -> bool:
    """Return whether the model starts from a checkpoint with some of the classes, which can be evaluated untrained."""
    return own_labels(plan.settings.model, plan.settings.label_set()) is not None


def baseline_repeats(plan: Plan) -> list[TrialRecord]:
    """Return the finished repeats of the baseline family in the storage, of the point that was repeated most often.

    Empty if they were trained on other frames, for another number of epochs, or from another model.
    """
    ledger, points = find_ledger(repeats_location(plan)), defaultdict(list)
    if ledger is None:
        return []
    for record in ledger.trials():
        comparable = is_comparable(ledger.metadata.settings_at(record.number), plan.settings.flat())
        if record.state is State.COMPLETE and not record.overrides and comparable:
            points[tuple(sorted(record.params.items()))].append(record)
    return max(points.values(), key=len, default=[])


def check_frames(plan: Plan) -> None:
    """Raise ConfigError if the repeats of the baseline family were trained on frames with another content."""
    ledger = find_ledger(repeats_location(plan))
    assert ledger is not None
    if ledger.metadata.identity.get("data") != fingerprint(load_splits(plan.settings.data, ("train", "val", "test"))):
        raise ConfigError(
            f"--keep: the repeats of {BASELINE} in {plan.location.storage} were trained on other frames than those of "
            f"{plan.settings.data.root or plan.settings.data.reader}; use another --storage, and repeat them there"
        )


def repeats_location(plan: Plan) -> StudyLocation:
    """Return the location of the study with the repeats of the baseline family."""
    return replace(plan.location, study=f"{plan.experiment}-{BASELINE}{REPEATS}")


def is_comparable(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two trainings had the same frames, model and number of epochs, given all their settings."""
    known = with_defaults(then)
    free = ("data.root", "data.cache", "data.device", "data.labels")
    keys = (k for k in now if is_about_frames(k) or k.startswith("model.") or k == "train.epochs")
    return all(known.get(key) == now[key] for key in keys if key not in free)


def baseline_command(plan: Plan) -> list[str]:
    """Return the command that trains the repeats of the baseline family."""
    words = ["python", "-m", "search.compare", "--spaces", BASELINE, "--config", plan.layers[0].origin]
    words += [word for key, value in set_values(plan) for word in ("--set", f"{key}={value}")]
    return words + plan.location_flags()


def set_values(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield the values of `--set` that do not belong to a family."""
    given = next(layer for layer in plan.layers if layer.origin == "--set")
    for key, value in given.values.items():
        if key.startswith(("data.", "model.", "train.")):
            yield key, value
