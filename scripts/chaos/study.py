"""Run the study of scripts.chaos: start and continue runs, inject faults, check the study after each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.chaos.cluster import Cluster
from scripts.chaos.ledger_checks import STUDY, LedgerChecks
from scripts.chaos.rig import ROOT, Driver, Server, end, is_worker, wait_until
from search.tracking.run_reader import read_runs

EPOCHS = 3
FIRST_TRIALS, MORE_TRIALS = 4, 4
"""First budget in trials, and trials added when the study ends before the fault."""
SETTINGS = {
    "data.height": 64,
    "data.width": 128,
    "data.train": 6,
    "data.val": 4,
    "data.test": 4,
    "train.epochs": EPOCHS,
}
STOP_LIMIT_S = 10.0
"""Seconds that a run may take to stop after a signal."""
DETECTION_LIMIT_S = 60.0
"""Seconds that a run may take to detect a killed raylet."""
RUN_LIMIT_S = 240.0
"""Seconds after which a run of a few tiny trials counts as hanging."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LENGTHS_S = {"starting": 8.0, "suggesting": 0.3, "training": 6.0, "writing": 0.03, "reporting": 0.1, "finishing": 0.05}
"""Seconds within which a fault is injected after the beginning of its phase; 1 s for other phases."""


@dataclass(frozen=True)
class Fault:
    """One fault to inject: kind and time, drawn from the seed in advance."""

    kind: str
    """driver, worker, stop, tracker, node or head."""
    moment: str
    """Phase of the run, see `MOMENTS`."""
    nth: int
    """Number of the phase's occurrence, from 1."""
    part: float
    """Position in the phase, in [0, 1)."""
    pick: float
    """Choice among several processes, signals or durations, in [0, 1)."""


class Chaos:
    """A study into which faults are injected.

    Args:
        folder: new or empty folder of all files.
        ray: folder of Ray's temporary files, with a short path.
        served: whether MLflow is a server instead of a database.
        clustered: whether to use a cluster of a head and two workers instead of a private one.
    """

    def __init__(self, folder: Path, ray: Path, served: bool, clustered: bool):
        self.folder, self.storage = folder, folder / "runs"
        for part in (self.storage, folder / "tmp"):
            part.mkdir(parents=True)
        own = {"RAY_TMPDIR": str(ray), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
        self.environment = os.environ | own | {"PYTHONPATH": str(ROOT)}
        self.server = Server(folder, self.environment) if served else None
        self.uri = self.server.uri if self.server else f"sqlite:///{self.storage / 'mlflow.db'}"
        self.cluster = Cluster(self.environment, workers=2) if clustered else None
        self.budget = FIRST_TRIALS
        self.driver: Driver | None = None
        self.orphans: list[psutil.Process] = []
        self.left: list[Cluster] = []  # clusters without a head
        self.ended = False
        """Whether the last run was ended by a fault, not by itself."""
        self.crashes: list[str] = []
        self.checks = LedgerChecks(self.storage, self.uri)

    def start(self) -> Driver:
        """Return the current run; starts one if none is alive."""
        if self.driver is None or not self.driver.alive:
            code = 0 if self.driver is None or self.ended else self.driver.wait(0)
            self.crashes += [f"the previous run ended by itself with exit code {code}"] if code else []
            self.ended = False
            arguments = ["--space", "bas_cp", "--study", STUDY, "--storage", str(self.storage), "--sampler", "random"]
            arguments += ["--trials", str(self.budget), "--max-concurrent", "2", "--tracking-uri", self.uri]
            arguments += ["--verbose"]  # `wait_for` reads the lines of epochs
            arguments += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
            arguments += ["--ray-address", self.cluster.address] if self.cluster else []
            environment = self.cluster.environment if self.cluster else self.environment
            self.driver = Driver(arguments, environment, self.folder / "driver.log")
        return self.driver

    def strike(self, fault: Fault) -> tuple[float, list[str]]:
        """Inject one fault; if the study ends before, extends its budget and tries again.

        Returns:
            Seconds from the start of the run to the fault, and one line per problem.
        """
        strikes = {
            "driver": self.kill_driver,
            "worker": self.kill_worker,
            "stop": self.stop,
            "tracker": self.kill_tracker,
            "node": self.kill_node,
            "head": self.kill_head,
        }
        while True:
            driver = self.start()
            happens = self.wait_for(driver, fault)
            moment_s = driver.age_s
            if happens:
                problems = strikes[fault.kind](driver, fault)
                if problems is not None:
                    return moment_s, problems
            code = driver.wait(STOP_LIMIT_S)
            if code is None:
                self.kill(driver)
                return moment_s, [f"no progress for {RUN_LIMIT_S:.0f} s"]
            if code != 0:
                return moment_s, [f"the run ended by itself with exit code {code}"]
            self.budget += MORE_TRIALS

    def wait_for(self, driver: Driver, fault: Fault) -> bool:
        """Wait for the time of a fault; returns False if the run ends before or hangs."""
        trials = self.storage / STUDY / "trials"
        models = {path.name for path in trials.glob("*/model-*")}
        reported, finished = driver.count("  mIoU "), driver.count(f"epoch {EPOCHS}/{EPOCHS}  mIoU ")
        conditions: dict[str, Callable[[], bool]] = {
            "starting": lambda: True,
            "suggesting": lambda: driver.count("started") + driver.count("continued") >= min(2, fault.nth),
            "training": lambda: driver.count("started") + driver.count("continued") > 0,
            "writing": lambda: sum(path.name not in models for path in trials.glob("*/model-*")) >= fault.nth,
            "reporting": lambda: driver.count("  mIoU ") >= reported + fault.nth,
            "finishing": lambda: driver.count(f"epoch {EPOCHS}/{EPOCHS}  mIoU ") >= finished + min(2, fault.nth),
            "ending": lambda: driver.count(f"{self.budget}/{self.budget} trials") > 0,
        }
        condition = conditions[fault.moment]
        wait_until(lambda: condition() or not driver.alive, RUN_LIMIT_S, pause_s=0.003)
        if not condition():
            return False
        time.sleep(fault.part * LENGTHS_S.get(fault.moment, 1.0))
        return driver.alive

    def kill(self, driver: Driver) -> None:
        """Kill the driver (kill -9) and record its orphaned processes; kills those of the previous driver."""
        end(self.orphans)
        self.ended = True
        self.orphans = driver.send(signal.SIGKILL)
        driver.wait(STOP_LIMIT_S)

    def kill_driver(self, driver: Driver, fault: Fault) -> list[str]:
        """Kill the driver (kill -9); in half of the cases wait until its workers have ended."""
        self.kill(driver)
        workers = [process for process in self.orphans if is_worker(process)]
        left = psutil.wait_procs(workers, timeout=30)[1] if fault.pick < 0.5 else []
        return [f"a worker was still alive after 30 s: {process}" for process in left]

    def kill_worker(self, driver: Driver, fault: Fault) -> list[str] | None:
        """Kill a process that trains (kill -9); returns None if the run ends before there is one."""
        wait_until(lambda: bool(driver.workers()) or not driver.alive, RUN_LIMIT_S)
        workers = driver.workers()
        if not workers:
            return None
        before = self.checks.deaths()
        end([workers[int(fault.pick * len(workers))]])
        # A timeout is no problem: the death of a worker that has just ended its trial is not recorded.
        wait_until(lambda: self.checks.deaths() > before or not driver.alive, 10)
        return []

    def stop(self, driver: Driver, fault: Fault) -> list[str] | None:
        """Send SIGINT or SIGTERM; the run must stop in time, with the right exit code and no RUNNING run in MLflow.

        Returns None if the run had already finished.
        """
        number = signal.SIGINT if fault.pick < 0.5 else signal.SIGTERM
        self.ended = True
        self.orphans += driver.send(number)
        began = time.monotonic()
        code = driver.wait(3 * STOP_LIMIT_S)
        took_s = time.monotonic() - began
        if code is None:
            self.kill(driver)
            return [f"{number.name}: still alive after {took_s:.0f} s"]
        if code == 0:
            return None  # the run had already finished
        if code == -number and not driver.lines:
            return []  # Python was still importing the command, so the default handler ended the process
        problems = [f"{number.name}: took {took_s:.1f} s to stop"] if took_s > STOP_LIMIT_S else []
        if code != EXIT_CODES[number]:
            problems.append(f"{number.name}: exit code {code}, must be {EXIT_CODES[number]}")
        return problems + self.left_running(driver)

    def left_running(self, driver: Driver) -> list[str]:
        """Return one line per MLflow run left RUNNING by a stopped driver that printed no warning."""
        if not self.checks.records() or driver.count("warning: MLflow at") or driver.count("before a trial ran"):
            return []
        runs = read_runs(self.uri, STUDY, self.checks.ledger().metadata.uid)
        return [f"MLflow: the run of trial {run.number} is still RUNNING" for run in runs if run.status == "RUNNING"]

    def kill_tracker(self, driver: Driver, fault: Fault) -> list[str]:
        """Kill the MLflow server (kill -9), and start it again after up to five seconds."""
        assert self.server is not None
        self.server.kill()
        time.sleep(5 * fault.pick)
        self.server.start()
        return []

    def kill_node(self, driver: Driver, fault: Fault) -> list[str]:
        """Kill the raylet of a worker node (kill -9), and add a node after the run has reported the loss."""
        assert self.cluster is not None
        reported = driver.count(" is lost; ")
        workers = self.cluster.workers()
        workers[int(fault.pick * len(workers))].kill_raylet()

        def noticed() -> bool:
            over = driver.count(f"{self.budget}/{self.budget} trials") > 0  # a finished run needs no node
            return driver.count(" is lost; ") > reported or over or not driver.alive

        in_time = wait_until(noticed, DETECTION_LIMIT_S)
        self.cluster.add_worker().wait()
        return [] if in_time else [f"the run has not reported the loss of a node after {DETECTION_LIMIT_S:.0f} s"]

    def kill_head(self, driver: Driver, fault: Fault) -> list[str]:
        """Kill head and driver (kill -9); the workers stay, and the next run uses a new cluster."""
        assert self.cluster is not None
        for cluster in self.left:
            cluster.close()
        self.cluster.head.kill()
        self.kill(driver)
        self.left = [self.cluster]
        self.cluster = Cluster(self.environment, workers=2)
        return []

    def check(self) -> list[str]:
        """Return one line per problem after a fault."""
        crashes, self.crashes = self.crashes, []
        return self.checks.check(self.budget) + crashes

    def finish(self) -> list[str]:
        """Finish the study, and check it with `search.audit`; returns one line per problem."""
        driver = self.start()
        code = driver.wait(RUN_LIMIT_S)
        if code != 0:
            return [f"the last run has not ended after {RUN_LIMIT_S:.0f} s" if code is None else f"exit code {code}"]
        command = [sys.executable, "-m", "search.audit", "--study", STUDY, "--storage", str(self.storage)]
        command += ["--trials", str(self.budget), "--tracking-uri", self.uri]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        output = (done.stdout + done.stderr).strip().splitlines()
        return self.crashes + self.checks.lost_epochs(self.checks.records()) + (output if done.returncode else [])

    def close(self) -> None:
        """Kill every process that was started."""
        if self.driver is not None and self.driver.alive:
            self.kill(self.driver)
        end(self.orphans)
        if self.server is not None:
            self.server.kill()
        for cluster in [*self.left, *([self.cluster] if self.cluster else [])]:
            cluster.close()
