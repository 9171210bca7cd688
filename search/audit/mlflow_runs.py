"""Compare a study's MLflow runs with its ledger.  Pure functions of the records read from both."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from fgseg.checkpoints.untrained_result import UntrainedResult
from search.ledger.records import TrialRecord, best_trial, count_ended
from search.tracking.epoch_images import image_epochs
from search.tracking.run_reader import CHECKPOINT, TrackedRun
from search.tracking.run_schema import ENDING_TAGS, as_text, outcome_points, study_ending, test_points, trial_ending


def audit_runs(
    runs: Sequence[TrackedRun],
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    untrained: UntrainedResult | None,
    behind: bool,
) -> Iterator[str]:
    """Yield one line per difference between MLflow's runs and the ledger's trials.

    Args:
        runs: all runs of the study, read before the ledger.
        records: all trials of the ledger.
        best: the best trial.
        untrained: result of the untrained checkpoint; None if the study's folder has none.
        behind: whether MLflow may lack runs, epochs and end states, as while a driver runs or after it was killed.
            Values that MLflow has are compared in any case.
    """
    counts = Counter(run.number for run in runs)
    known = {record.number: record for record in records}
    for number in [None, *known, *([CHECKPOINT] if untrained else [])]:
        if counts[number] > 1 or (counts[number] == 0 and not behind):
            yield f"{owner(number)}: {counts[number]} runs in MLflow instead of one"
    for run in runs:
        if run.number is None:
            yield from audit_parent(run, records, best, behind)
        elif run.number == CHECKPOINT:
            if untrained:  # else its file is missing, which search.report writes again
                yield from audit_points(run, {0: untrained.metrics()}, behind)
        elif run.number in known:
            yield from audit_run(run, known[run.number], behind)
        else:
            yield f"{owner(run.number)}: has a run in MLflow, the ledger knows no such trial"


def audit_images(runs: Sequence[TrackedRun], saved: Mapping[int, set[int]]) -> Iterator[str]:
    """Yield one line per trial of whose overlays MLflow lacks some.

    Args:
        runs: all runs of the study.
        saved: the epochs of which the trial's folder has overlays, by number of the trial.
    """
    for run in runs:
        if run.number is not None and (missing := saved.get(run.number, set()) - image_epochs(run)):
            yield f"trial {run.number}: MLflow lacks the overlays of epochs {', '.join(map(str, sorted(missing)))}"


def owner(number: int | None) -> str:
    """Name the trial of a run, the study for its parent run (None), or the untrained checkpoint (CHECKPOINT)."""
    names = {None: "the study", CHECKPOINT: "the untrained checkpoint"}
    return names.get(number, f"trial {number}")


def audit_run(run: TrackedRun, record: TrialRecord, behind: bool) -> Iterator[str]:
    """Yield the differences between a trial and its run."""
    expected = trial_ending(record, "finished")
    found = (run.status, {key: run.tags[key] for key in ENDING_TAGS if key in run.tags})
    if found != expected and not (behind and is_earlier(run)):
        yield f"trial {record.number}: MLflow says {format_ending(*found)}, must be {format_ending(*expected)}"
    yield from audit_params(run, record, behind)
    yield from audit_points(run, expected_points(record), behind)


def audit_params(run: TrackedRun, record: TrialRecord, behind: bool) -> Iterator[str]:
    """Check that a run has the point of its trial, except settings changed after the trial ran out of memory."""
    for key in sorted(record.params.keys() - record.overrides.keys()):
        logged, expected = run.params.get(key), as_text(record.params[key])
        if logged != expected and not (behind and logged is None):
            yield f"trial {record.number}: {key} is {logged} in MLflow, {expected} in the ledger"


def is_earlier(run: TrackedRun) -> bool:
    """Return whether a run's status is not final: RUNNING, or KILLED by an interruption."""
    return run.status == "RUNNING" or (run.status == "KILLED" and "fgseg.pruned" not in run.tags)


def format_ending(status: str, tags: dict[str, str]) -> str:
    """Format a run's status with the tags that explain it."""
    return " ".join([status, *(f"({key}: {value})" for key, value in tags.items())])


def audit_points(run: TrackedRun, expected_by_step: dict[int, dict[str, float]], behind: bool) -> Iterator[str]:
    """Yield the differences between recorded and logged metrics of a run, one line per epoch and kind of fault."""
    logged_by_step = points_by_step(run)
    for step in sorted(logged_by_step.keys() | expected_by_step.keys()):
        logged, expected = logged_by_step.get(step, {}), expected_by_step.get(step, {})
        faults = {
            "is lacking": [key for key in expected if key not in logged and not behind],
            "is unknown to the ledger": [key for key in logged if key not in expected],
            "is there more than once": [key for key, values in logged.items() if len(values) > 1],
            "differs from the ledger": [k for k, v in expected.items() if k in logged and set(logged[k]) != {v}],
        }
        for fault, keys in faults.items():
            if keys:
                yield f"{owner(run.number)}: epoch {step} in MLflow {fault}: {shorten(keys)}"


def expected_points(record: TrialRecord) -> dict[int, dict[str, float]]:
    """Return the finite metrics of every epoch by epoch and name, the test result's and the outcome's among them."""
    points = {epoch.epoch: epoch.metrics() for epoch in record.epochs}
    for point in (*test_points(record), *outcome_points(record)):
        points[point.step] |= point.values
    return {step: {k: v for k, v in metrics.items() if math.isfinite(v)} for step, metrics in points.items()}


def points_by_step(run: TrackedRun) -> dict[int, dict[str, list[float]]]:
    """Return the logged values of a run by step and metric."""
    by_step: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, points in run.points.items():
        for step, value in points:
            by_step[step][key].append(value)
    return by_step


def shorten(keys: list[str]) -> str:
    """Join the first three names and the number of the others."""
    more = [f"and {len(keys) - 3} more"] if len(keys) > 3 else []
    return ", ".join([*keys[:3], *more])


def audit_parent(
    run: TrackedRun, records: Sequence[TrialRecord], best: TrialRecord | None, behind: bool
) -> Iterator[str]:
    """Yield the differences between the study and its parent run: status, best trial, and best mIoU by step."""
    for step, metrics in points_by_step(run).items():
        doubled = [key for key, values in metrics.items() if len(values) > 1]
        if doubled:
            yield f"the study: step {step} in MLflow is there more than once: {shorten(doubled)}"
    if behind:
        return
    status, tags = study_ending(records, "finished")
    if run.status != status:
        yield f"the study: MLflow says {run.status}, must be {format_ending(status, tags)}"
    if best is not None:
        yield from audit_best(run, best, records)


def audit_best(run: TrackedRun, best: TrialRecord, records: Sequence[TrialRecord]) -> Iterator[str]:
    """Check that the parent run names the best trial and has its mIoU at the last step.

    The step keeps the best value at the time it was logged, which depends on whether the run of the search allowed
    trials with a changed batch; both values are accepted.
    """
    ended = count_ended(records)
    if run.tags.get("fgseg.best_trial") != str(best.number):
        yield f"the study: MLflow names trial {run.tags.get('fgseg.best_trial')} the best, must be trial {best.number}"
    allowed = [b.chosen.miou for b in (best_trial(records, False), best_trial(records, True), best) if b and b.chosen]
    for name in ("val/miou", "selected/val/miou"):
        shown = dict(run.points.get(name, [])).get(ended)
        if shown not in allowed:
            yield f"the study: MLflow shows {name} {shown} after {ended} trials, must be {allowed[-1]}"
