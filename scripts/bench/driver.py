"""The driver of a search without Ray and its workers: the events of many trials at once come from a clock.

The command `search.run` runs unchanged but for that: ledger, sampler, display, report and the threads of the views.
"""

import heapq
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

from scripts.bench.formula import synthetic_epoch
from search.execution.jobs import TrialJobs
from search.execution.messages import TrialJob, TrialReport
from search.execution.stop_reason import BUDGET, StopReason
from search.execution.trial_events import TrialEventHandler
from search.study.resources import Resources


@contextmanager
def without_ray(at_once: int, epoch_s: float) -> Iterator[None]:
    """Let `search.run` take the events of its trials from `run_trials`, `at_once` trials at a time."""

    @contextmanager
    def cluster(*arguments: Any) -> Iterator[Resources]:
        yield Resources(cpus=at_once, gpus=0, concurrent=at_once, threads=1)

    replaced = {
        "search.execution.ray_tune.run_trials": partial(run_trials, at_once, epoch_s),
        "search.cluster.ray_cluster.cluster": cluster,
        "search.cluster.ray_cluster.NodeMonitor": lambda resources: None,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        yield


def run_trials(
    at_once: int, epoch_s: float, events: TrialEventHandler, jobs: TrialJobs, *others: Any, **options: Any
) -> StopReason:
    """Run trials until the ledger has no more, in place of `search.execution.ray_tune.run_trials`.

    The first trials start one after the other over the length of a trial; each further one when another ends.
    """
    queue = [(slot * events.epochs * epoch_s / at_once, slot) for slot in range(at_once)]
    running: dict[int, tuple[str, TrialJob, TrialReport]] = {}
    began, names = time.monotonic(), map(str, count())
    while queue:
        due, slot = heapq.heappop(queue)
        time.sleep(max(0.0, began + due - time.monotonic()))
        if slot not in running:
            name = next(names)
            attempt = events.next_attempt(name)
            if attempt is None:
                continue
            running[slot] = name, jobs.job(attempt), TrialReport(attempt.number, attempt.attempt)
            due += epoch_s
        elif report_epoch(events, *running[slot], epoch_s):
            del running[slot]
        else:
            due += epoch_s
        heapq.heappush(queue, (due, slot))
    return BUDGET


def report_epoch(events: TrialEventHandler, name: str, job: TrialJob, report: TrialReport, epoch_s: float) -> bool:
    """Report another epoch of a trial; returns whether the trial has ended."""
    report.epochs.append(synthetic_epoch(job, len(report.epochs) + 1, time.time() - epoch_s))
    events.on_report(name, report)
    is_last = len(report.epochs) == events.epochs
    if is_last:
        events.on_trial_end(name, report, died=False)
    return is_last
