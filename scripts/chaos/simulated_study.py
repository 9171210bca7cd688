"""One schedule of faults: a study under a virtual clock, its drivers, and everything that they would reach outside."""

import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

from psutil import STATUS_RUNNING, NoSuchProcess

from fgseg.config.errors import ConfigError
from scripts.chaos.invariants import check_end, check_history, check_run
from scripts.chaos.replayed_study import DATA, replayed_trial, small_plan
from scripts.chaos.simulated_database import shared_database
from scripts.chaos.simulated_files import Disk
from scripts.chaos.simulated_mlflow import Server
from scripts.chaos.simulated_ray import Cluster, SimulatedTuner
from scripts.chaos.virtual_time import Clock, Process, Thread, threading_for
from search.cli.signals import Interrupted, Signals
from search.execution.controller import run_study
from search.execution.messages import TrialJob, TrialReport
from search.study.location import StudyLocation
from search.study.plan import Plan

HOSTS = ("alpha", "beta")
START = 1.7e9
"""Unix seconds at which every schedule begins."""
END_WITHIN_S = 600.0
"""Seconds after the end of the last fault within which a study ends.

It sums up: a node is declared dead after 65 s, a lock of another host is taken over after 60 s, MLflow's longest pause
is 30 s, and the rest are trials, one after the other where one node is left."""
RESTART_S = 3.0
"""Seconds until somebody runs the command again."""


class Study:
    """A study, its drivers, and the world around them.  One at a time in a process, whose database it empties.

    Attributes:
        lacking: whether the last run ended with a fault or a warning, so that the same command has something to do.
        violations: a line for each invariant that does not hold.
    """

    def __init__(self, seed: int) -> None:
        self.random, self.identifiers = Random(seed), Random(seed)
        self.clock = Clock(START)
        self.plan = make_study_plan(*options(self.random))
        self.database, self.engine = shared_database()
        self.database.begin_schedule(self.clock, self.random)
        self.disk = Disk(self.clock, self.random)
        self.mlflow = Server(self.clock, self.random, self.on_mlflow)
        self.cluster = Cluster(self.clock, self.random)
        self.drivers: dict[Process, Signals] = {}
        self.lasting: dict[tuple[str, str], list[Any]] = {}
        self.raising = 0
        self.done = False
        self.ended_at = float("inf")
        self.outputs: dict[Process, io.StringIO] = {}
        self.lacking = False
        self.violations: list[str] = []

    def on_mlflow(self, run: Any) -> None:
        """Check a run of MLflow after every change."""
        self.violations += check_run(run, self.database)

    def start_driver(self, host: str) -> Process:
        """Run the command on a host."""
        process = Process(self.clock, host)
        self.drivers[process], self.outputs[process] = Signals(), io.StringIO()
        Thread(self.drive, process=process, clock=self.clock).start()
        return process

    def drive(self) -> None:
        """Run the command in its process; afterwards somebody runs it again unless the study is done."""
        process = self.clock.process
        code: int | None = None
        try:
            code = run_study(self.plan, self.drivers[process])
        except ConfigError:  # this one and the next as in `run_command`
            code = 2
        except OSError:
            code = 1
        except Interrupted:
            code = 143
        except Exception:
            self.violations.append(f"the driver raised {traceback.format_exc()}")
        finally:
            process.kill()
            del self.drivers[process]
            if code == 0 or (code == 1 and self.database.count("fail", "pruned") == self.plan.search.trials):
                self.done, self.lacking = True, code == 1 or "warning:" in self.outputs[process].getvalue()
                self.ended_at = self.clock.now
            self.clock.call_at(self.clock.now + RESTART_S, self.restart)

    def restart(self) -> None:
        """Run the command again, unless another driver runs or the study is done."""
        if not self.done and not self.drivers:
            self.start_driver(self.random.choice(HOSTS))

    def train(self, job: TrialJob, run: None, report: TrialReport, send: Callable[[TrialReport], None]) -> None:
        """Replay a trial in its worker, in place of the training."""
        epochs = replayed_trial(job)
        while True:
            self.clock.sleep(self.random.uniform(1.0, 5.0))
            if self.raising:
                self.raising -= 1
                raise RuntimeError("a tensor has the wrong shape")
            made = next(epochs, None)
            if made is None:
                return
            report.epochs = made.epochs
            send(report)

    def run(self, faults: Sequence[Any]) -> list[str]:
        """Run the study under these faults, `simulated_faults.Fault`, to its end; returns `violations`."""
        with self.replacing():
            self.start_driver(HOSTS[0])
            for fault in faults:
                self.clock.call_at(START + fault.at, partial(fault.begin, self))
            over = START + max((fault.at + fault.seconds for fault in faults), default=0.0)
            self.clock.run(over + END_WITHIN_S, lambda: self.done or bool(self.violations))
            if not self.done and not self.violations:
                self.violations.append(f"the study has not ended {END_WITHIN_S:.0f} s after the last fault")
            if not self.violations:
                self.clock.run(max(self.clock.now, over) + END_WITHIN_S)  # whatever is late or frozen
            self.violations += check_history(self.database.history(), self.plan.search.trials)
            if not self.violations:
                self.settle()
        return self.violations

    def settle(self) -> None:
        """Run the command again where something is lacking; then everything must agree.

        That is where it said so, and after `wrote_late`.
        """
        if self.lacking or self.wrote_late():
            self.done = False  # a lock that could not be released refuses the command for up to a minute
            self.start_driver(HOSTS[0])
            self.clock.run(self.clock.now + END_WITHIN_S)
        auditor = Process(self.clock, HOSTS[0])
        Thread(self.check, process=auditor, clock=self.clock).start()
        self.clock.run(self.clock.now + END_WITHIN_S)

    def wrote_late(self) -> bool:
        """Return whether, after the end, a worker changed a file or a process crashed while it wrote one.

        That may leave half a file, or a manifest of a superseded attempt that was frozen before the write.
        """
        workers = (at for host, at in self.disk.changed_at.items() if host not in HOSTS)
        return max([self.disk.crashed_at, *workers]) > self.ended_at

    def check(self) -> None:
        """Check the end of the study."""
        self.violations += check_end(self.plan)

    def find_process(self, pid: int | None = None) -> Any:
        """Return a living process of the caller's host, by default the caller's, in place of `psutil.Process`."""
        own = self.clock.process
        seen = {process.pid: process for process in self.clock.processes if process.host == own.host and process.alive}
        found = seen.get(own.pid if pid is None else pid)
        if found is None:
            raise NoSuchProcess(pid or 0)
        return SimpleNamespace(create_time=lambda: found.started, status=lambda: STATUS_RUNNING)

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Replace everything outside of the product's own process, and the parts that only show results."""
        threads, path = threading_for(self.clock), self.disk.path_class
        replaced: dict[str, Any] = {
            "time.time": self.clock.time,
            "time.monotonic": self.clock.time,
            "time.thread_time": lambda: 0.0,
            "uuid.uuid4": lambda: UUID(int=self.identifiers.getrandbits(128), version=4),
            "search.ledger.lock.uptime": self.clock.time,
            "fgseg.storage.retry.sleep": self.clock.sleep,
            "search.ledger.lock.threading": threads,
            "search.ledger.study_reader.threading": threads,
            "search.tracking.tracker.threading": threads,
            "search.tracking.precedence.threading": threads,
            "search.ledger.lock.host_id": lambda: self.clock.process.host,
            "search.ledger.lock.os": SimpleNamespace(getpid=lambda: self.clock.process.pid),
            "search.ledger.lock.psutil.Process": self.find_process,
            "search.ledger.database.open_engine": lambda url: self.engine,
            "search.ledger.study_reader.open_engine": lambda url: self.engine,
            "search.ledger.database.has_database": lambda url: True,
            "fgseg.storage.store.Path": path,
            "fgseg.storage.store.os": self.disk.os,
            "fgseg.storage.store.shutil": SimpleNamespace(rmtree=self.disk.remove_tree),
            "fgseg.inference.export.Path": path,
            "fgseg.inference.export.os": self.disk.os,
            "fgseg.inference.export.shutil": SimpleNamespace(rmtree=self.disk.remove_tree),
            "search.export.model.Path": path,
            "search.tracking.tracker.load_client": lambda: self.mlflow.client,
            "search.tracking.run_writer.load_client": lambda: self.mlflow.client,
            "search.tracking.client.load_client": lambda: self.mlflow.client,
            "search.tracking.run_files.log_bytes": log_bytes,
            "search.tracking.run_writer.log_bytes": log_bytes,
            "search.tracking.run_writer.yaml": SimpleNamespace(safe_dump=lambda *settings, **options: ""),
            "ray.tune.Tuner": partial(SimulatedTuner, self.cluster),
            "ray.tune.report": self.cluster.report,
            "ray.get_runtime_context": self.cluster.context,
            "search.execution.worker.get_runtime_context": self.cluster.context,
            "search.execution.worker.check_node": lambda job: None,
            "search.execution.worker.train_with_oom_retry": lambda job, report, send, train: self.train(
                job, None, report, send
            ),
            "search.cluster.ray_cluster.cluster": self.cluster.resources,
            "search.cluster.ray_cluster.alive_nodes": self.cluster.alive_nodes,
            "search.cluster.ray_cluster.answers": self.cluster.answers,
            "search.execution.controller.preflight": lambda plan, console: plan.identity | {"data": DATA},
            "search.execution.controller.print_notes": lambda plan, console: None,
            "search.execution.controller.Console": lambda: SimulatedConsole(self.outputs[self.clock.process]),
            "search.execution.ray_tune.tempfile": SimpleNamespace(mkdtemp=lambda prefix: f"/simulated/{prefix}"),
            "search.execution.strategies.print_run_summary": lambda *summary, **options: None,
            "search.execution.views.ReportWriter": NoReport,
            "search.execution.views.can_show": lambda location: False,
            "search.export.model.model_card": lambda *arguments: "card",
        }
        with ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(patch(name, value))
            stack.enter_context(redirect_stderr(io.StringIO()))
            try:
                yield
            finally:
                self.done = True  # else the command would be run again and again, perhaps under a fault without end
                self.clock.end()


def log_bytes(client: Any, *arguments: Any) -> None:
    """Log an artifact without a file, in place of the function of the same name."""
    client.log_artifact(*arguments)


class SimulatedConsole:
    """Prints plain lines, in place of `rich.console.Console`, which takes longer than the rest of an epoch."""

    is_interactive = False

    def __init__(self, file: io.StringIO) -> None:
        self.print = lambda text, **options: print(text, file=file)
        self.status = lambda text: nullcontext()


class NoReport:
    """In place of the report, which other processes write."""

    def __init__(self, location: StudyLocation, publish: Callable[[str, bytes], None], **options: Any) -> None:
        self.on_attempt = self.on_epoch = self.on_trial_end = self.stop = lambda *arguments: None
        self.on_note = self.finish = self.stop


@lru_cache
def make_study_plan(sampler: str, pruner: str) -> Plan:
    """Return the plan of the study with this sampler and pruner."""
    return small_plan(
        Path("/simulated"), sampler=sampler, pruner=pruner, tracking_uri="http://mlflow", register_model=False
    )


def options(random: Random) -> tuple[str, str]:
    """Choose sampler and pruner: mostly random points, the cheapest."""
    return "tpe" if random.random() < 0.05 else "random", random.choice(("none", "none", "asha", "median"))
