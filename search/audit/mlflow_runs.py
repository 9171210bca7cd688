"""Does MLflow say what the ledger says?  Purely from what was read of both."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from search.ledger.records import State, TrialRecord, best_trial
from search.tracking.run_reader import TrackedRun
from search.tracking.run_schema import ENDING_TAGS, study_ending, trial_ending


def audit_runs(
    runs: Sequence[TrackedRun], records: Sequence[TrialRecord], best: TrialRecord | None, behind: bool
) -> Iterator[str]:
    """Each difference between MLflow's runs and the ledger's trials as one line.

    Args:
        runs: all runs of the study, read before the ledger was.
        records: all trials of the ledger.
        best: the best of them.
        behind: whether MLflow may lack runs, epochs and end states, as it does while a driver works and after one was
            killed.  What it does hold must be right even then.
    """
    counts = Counter(run.number for run in runs)
    known = {record.number: record for record in records}
    for number in [None, *known]:
        if counts[number] > 1 or (counts[number] == 0 and not behind):
            yield f"{owner(number)}: {counts[number]} runs in MLflow instead of one"
    for run in runs:
        if run.number is None:
            yield from audit_parent(run, records, best, behind)
        elif run.number in known:
            yield from audit_run(run, known[run.number], behind)
        else:
            yield f"{owner(run.number)}: has a run in MLflow, the ledger knows no such trial"


def owner(number: int | None) -> str:
    """Whose run it is."""
    return "the study" if number is None else f"trial {number}"


def audit_run(run: TrackedRun, record: TrialRecord, behind: bool) -> Iterator[str]:
    """The differences between a trial and its run."""
    expected = trial_ending(record, "finished")
    held = (run.status, {key: run.tags[key] for key in ENDING_TAGS if key in run.tags})
    if held != expected and not (behind and is_earlier(run)):
        yield f"trial {record.number}: MLflow says {describe(*held)}, must be {describe(*expected)}"
    yield from audit_points(run, record, behind)


def is_earlier(run: TrackedRun) -> bool:
    """Whether a run's state is one that a trial passes through: at work, or interrupted."""
    return run.status == "RUNNING" or (run.status == "KILLED" and "fgseg.pruned" not in run.tags)


def describe(status: str, tags: dict[str, str]) -> str:
    """A state with the tags that explain it."""
    return " ".join([status, *(f"({key}: {value})" for key, value in tags.items())])


def audit_points(run: TrackedRun, record: TrialRecord, behind: bool) -> Iterator[str]:
    """The differences between the epochs of a trial and the points of its run, one line per epoch and kind."""
    held, expected = points_by_step(run), expected_points(record)
    for step in sorted(held.keys() | expected.keys()):
        here, there = held.get(step, {}), expected.get(step, {})
        faults = {
            "is lacking": [key for key in there if key not in here and not behind],
            "is unknown to the ledger": [key for key in here if key not in there],
            "is there more than once": [key for key, values in here.items() if len(values) > 1],
            "differs from the ledger": [k for k, v in there.items() if k in here and set(here[k]) != {v}],
        }
        for fault, keys in faults.items():
            if keys:
                yield f"{owner(run.number)}: epoch {step} in MLflow {fault}: {shorten(keys)}"


def expected_points(record: TrialRecord) -> dict[int, dict[str, float]]:
    """Epoch -> metric -> value: those of every epoch, and at the judged one what the test split said."""
    points = {epoch.epoch: epoch.metrics() for epoch in record.epochs}
    if record.test is not None:
        points[record.test.epoch] = points[record.test.epoch] | record.test.metrics()
    return {step: {k: v for k, v in metrics.items() if math.isfinite(v)} for step, metrics in points.items()}


def points_by_step(run: TrackedRun) -> dict[int, dict[str, list[float]]]:
    """Step -> metric -> the values logged there."""
    by_step: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, points in run.points.items():
        for step, value in points:
            by_step[step][key].append(value)
    return by_step


def shorten(keys: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = [f"and {len(keys) - 3} more"] if len(keys) > 3 else []
    return ", ".join([*keys[:3], *more])


def audit_parent(
    run: TrackedRun, records: Sequence[TrialRecord], best: TrialRecord | None, behind: bool
) -> Iterator[str]:
    """The differences between the study and its run: state, best trial, and the points of the best so far."""
    for step, metrics in points_by_step(run).items():
        doubled = [key for key, values in metrics.items() if len(values) > 1]
        if doubled:
            yield f"the study: step {step} in MLflow is there more than once: {shorten(doubled)}"
    if behind:
        return
    status, tags = study_ending(records, "finished")
    if run.status != status:
        yield f"the study: MLflow says {run.status}, must be {describe(status, tags)}"
    if best is not None:
        yield from audit_best(run, best, records)


def audit_best(run: TrackedRun, best: TrialRecord, records: Sequence[TrialRecord]) -> Iterator[str]:
    """Whether the study's run names the best trial, and shows its mIoU at the last step.

    That step keeps the best as it was when its trial ended, also where a later run judges changed batches otherwise.
    """
    ended = sum(record.state is not State.RUNNING for record in records)
    if run.tags.get("fgseg.best_trial") != str(best.number):
        yield f"the study: MLflow names trial {run.tags.get('fgseg.best_trial')} the best, must be trial {best.number}"
    shown = dict(run.points.get("val/miou", [])).get(ended)
    if shown not in {b.value for b in (best_trial(records, False), best_trial(records, True)) if b}:
        yield f"the study: MLflow shows val/miou {shown} after {ended} trials, must be {best.value}"
