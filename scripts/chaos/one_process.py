"""Run a study of replayed trials in one process: `run_study` with everything that it would start replaced.

| replaced | by |
|---|---|
| Ray, its cluster and its workers | `run_trials`: trials in turn; the event handler is called as from Ray Tune |
| the threads of MLflow and Optuna | `InStep`: every notification is written before the driver continues |
| the checks of data and weights | nothing; they write only into the cache |
| the processes that write the report and register the model | calls; the charts are empty, nothing is registered |
| the migrations of an empty MLflow database | a copy of a database that has them |
| the pruner | `StopsOne`, whose decisions do not depend on the order in which trials report |

Everything else is the product's: controller, ledger, lock, event handler, retention, stores, trackers, report, export.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from alembic.util import load_python_file
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, create_engine

from scripts.chaos.replayed_study import CONCURRENT, DATA, replayed_trial
from search.cli.signals import Signals
from search.execution.controller import run_study
from search.execution.jobs import TrialJobs
from search.execution.messages import TrialJob, TrialReport
from search.execution.stop_reason import BUDGET, StopReason, fault
from search.execution.trial_events import TrialEventHandler
from search.report.content import Content, build_content
from search.report.frames import Frames
from search.study.plan import Plan
from search.study.resources import Resources
from search.tracking.client import create_database, fill_database
from search.tracking.optuna_studies import OptunaTracker
from search.tracking.run_schema import Phase
from search.tracking.tracker import BackgroundWriter, Tracker, Writer

TRIALS, RESTARTED, PRUNED, FAILED = 4, 1, 2, 3
"""Number of trials, and the numbers of those that do not simply complete."""


class InStep(BackgroundWriter):
    """Calls the writer in the thread of the caller; an error of the writer reaches the caller.

    A slow server makes the thread write several notifications at once, and a very slow one all of them in the last
    pass.  `is_slow` chooses between the two ends: every notification at once, or all in the last pass.
    """

    is_slow = False
    writer: Writer | None = None

    def start(self) -> None:
        """Make the full pass of a start."""
        self.files: dict[str, bytes] = {}
        self._pass(set())

    def notify(self, number: int) -> None:
        """Update a trial's run."""
        if not self.is_slow:
            self._pass({number})

    def publish(self, name: str, data: bytes) -> None:
        """Write a file."""
        self.files[name] = data
        if not self.is_slow:
            self._pass(set())

    def stop(self, timeout_s: float, interrupted: bool = False) -> bool:
        """Make the last pass."""
        self._pass(set(), "interrupted" if interrupted else "finished")
        return True

    def _pass(self, numbers: set[int], closing: Phase | None = None) -> None:
        files, self.files = self.files, {}
        self.writer = self._write(self.writer, numbers, files, closing)


class TrackerInStep(Tracker, InStep):
    """The tracker of MLflow without its thread."""


class OptunaInStep(OptunaTracker, InStep):
    """The tracker for optuna-dashboard without its thread."""


class StopsOne(BasePruner):
    """Stops the trial PRUNED after its second epoch."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is stopped."""
        return trial.number == PRUNED and trial.last_step == 2


def call_at_once(target: Callable[..., None], *arguments: Any, niceness: int = 0) -> Any:
    """Call the target in this process, in place of `ChildProcess`; returns a child that has ended."""
    child = SimpleNamespace(
        send=lambda message: None, has_message=lambda: True, receive=lambda *limits: None, close=lambda: None
    )
    target(child, *arguments)
    return child


def run_trials(events: TrialEventHandler, jobs: TrialJobs, *others: Any, **options: Any) -> StopReason:
    """Run trials in turn, an epoch each, until the ledger has no more; as `search.execution.ray_tune.run_trials`."""
    running: dict[str, Iterator[TrialReport]] = {}
    latest: dict[str, TrialReport] = {}
    started = 0
    while True:
        while len(running) < CONCURRENT and (attempt := events.next_attempt(str(started))) is not None:
            running[str(started)] = trial_with_faults(jobs.job(attempt))
            started += 1
        if not running:
            break
        for name, reports in list(running.items()):
            report = next(reports, None)
            if report is not None:
                latest[name] = report
            if report is None or events.on_report(name, report) or dies(report):
                events.on_trial_end(name, latest.get(name), died=report is not None and dies(report))
                del running[name]
    left = events.ledger.open_trials()
    return fault(f"trials {left} are still open") if left else BUDGET


def trial_with_faults(job: TrialJob) -> Iterator[TrialReport]:
    """Replay a trial; the trial FAILED reports an error after its first epoch."""
    for report in replayed_trial(job):
        if job.number == FAILED:
            report.error = "the loss is not finite"
        yield report
        if report.error:
            return


def dies(report: TrialReport) -> bool:
    """Return whether the worker dies after this report: that of the trial RESTARTED, once."""
    return (report.number, report.attempt, len(report.epochs)) == (RESTARTED, 1, 1)


@contextmanager
def fixed_cluster(*arguments: Any) -> Iterator[Resources]:
    """Stand for a cluster in which CONCURRENT trials run at once."""
    yield Resources(cpus=1, gpus=0, concurrent=CONCURRENT, threads=1)


load_once = cache(load_python_file)


def load_migration(folder: str, name: str) -> Any:
    """Load a module of Alembic once: it reads all migrations of Optuna and MLflow whenever a database is opened."""
    return load_python_file(folder, name) if name == "env.py" else load_once(folder, name)  # env.py is a program


ENGINES: dict[str, Engine] = {}


def shared_engine(url: Any, create: Callable[..., Engine] = create_engine, **options: Any) -> Engine:
    """Return the engine of a database, made by the first call: it keeps compiled statements, half the time of a run."""
    key = f"{url} {options}"
    if key not in ENGINES:
        ENGINES[key] = create(url, **options)
    return ENGINES[key]


def run_in_one_process(plan: Plan, database: Path, is_slow: bool = False, with_optuna: bool = True) -> int:
    """Run what is left of a study; returns the exit code of `run_study`.

    Args:
        plan: of the study.
        database: an empty MLflow database, see `empty_database`.
        is_slow: see `InStep`.
        with_optuna: whether to write optuna.db.
    """
    ray = ModuleType("search.execution.ray_tune")
    ray.run_trials = run_trials  # type: ignore[attr-defined]
    replaced: dict[str, Any] = {
        "scripts.chaos.one_process.InStep.is_slow": is_slow,
        "search.ledger.database.create_engine": shared_engine,
        "sqlalchemy.engine.create_engine": shared_engine,  # of Optuna
        "sqlalchemy.create_engine": shared_engine,  # of MLflow
        "search.ledger.lock.HEARTBEAT_S": 1e6,  # no thread writes while the files are copied, however long that takes
        "search.ledger.lock.TAKEOVER_S": 1e9,
        "alembic.util.load_python_file": load_migration,
        "search.execution.controller.preflight": lambda plan, console: plan.identity | {"data": DATA},
        "search.execution.controller.print_notes": lambda plan, console: None,
        "search.cluster.ray_cluster.cluster": fixed_cluster,
        "search.tracking.precedence.LONGEST_PAUSE_S": 0.0,  # the views write within the driver's events
        "search.sampling.study_sampler.build_pruner": lambda *settings: StopsOne(),
        "search.cluster.ray_cluster.NodeMonitor": lambda resources: None,
        "search.execution.views.Tracker": TrackerInStep,
        "search.execution.views.OptunaTracker": OptunaInStep,
        "search.execution.views.can_show": lambda location: with_optuna,
        "search.report.background.ChildProcess": call_at_once,
        "search.report.content.png": lambda draw, marks=(): (b"PNG", ()),
        "search.report.content.build_content": one_chart,
        "search.report.frames.choose_frames": no_frames,
        "search.tracking.run_writer.fill_database": lambda uri, artifacts: copy_database(database, uri),
        "search.export.model.register": lambda *arguments: 1,
    }
    with ExitStack() as stack:
        sys.modules[ray.__name__] = ray  # not by `patch.dict`, which would forget every module imported meanwhile
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        return run_study(plan, Signals())


def one_chart(*arguments: Any, build_content: Callable[..., Content] = build_content) -> Content:
    """Return the content of a report with the first of its charts."""
    content = build_content(*arguments)
    return replace(content, charts=content.charts[:1])


def no_frames(*arguments: Any) -> Frames:
    """Stand for the frames of the report, which torch predicts."""
    return Frames((), "No frames.")


def empty_database(folder: Path) -> Path:
    """Make an MLflow database with all migrations and no runs, which takes 1.4 s; returns its path."""
    path = folder / "empty.db"
    create_database(f"sqlite:///{path}", lambda uri: fill_database(uri, folder.as_uri()))
    return path


def copy_database(database: Path, uri: str) -> None:
    """Copy a database to an SQLite address, and write it to the disk, as SQLite does."""
    path = Path(uri.removeprefix("sqlite:///"))
    shutil.copy(database, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
