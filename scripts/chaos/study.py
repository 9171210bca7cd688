"""The study of scripts.chaos: start and continue it, inject faults, and audit it after each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.chaos.books import STUDY, Books
from scripts.chaos.cluster import Cluster
from scripts.chaos.rig import ROOT, Driver, Server, end, is_worker, wait_until
from search.tracking.run_reader import read_runs

EPOCHS = 3
FIRST_TRIALS, MORE_TRIALS = 4, 4
"""The budget, and what is added when a study is complete before its time."""
SETTINGS = {
    "data.height": 64,
    "data.width": 128,
    "data.train": 6,
    "data.val": 4,
    "data.test": 4,
    "train.epochs": EPOCHS,
}
STOP_LIMIT_S = 10.0
"""How long a run may take to stop when it is asked to."""
NEWS_LIMIT_S = 60.0
"""How long a run may take to notice that a raylet was killed."""
RUN_LIMIT_S = 240.0
"""A run of a few tiny trials that takes longer hangs."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LENGTHS_S = {"starting": 8.0, "asking": 0.3, "training": 6.0, "writing": 0.03, "reporting": 0.1, "telling": 0.05}
"""How long a moment may last; one second where nothing is said."""


@dataclass(frozen=True)
class Fault:
    """What is to happen, and when; drawn from the seed before anything runs."""

    kind: str
    """driver, worker, stop, tracker, node or head."""
    moment: str
    nth: int
    """Which one of several such moments, from 1."""
    part: float
    """In [0, 1): how far into the moment."""
    pick: float
    """In [0, 1): which of several victims, signals or lengths."""


class Chaos:
    """A study that is broken again and again.

    Args:
        folder: everything is written below it; must be empty or new.
        ray: a folder of Ray's own with a short path.
        served: whether MLflow is a server instead of a database.
        clustered: whether it runs on a cluster of a head and two workers instead of a private one.
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
        self.left: list[Cluster] = []  # without a head
        self.ended = False
        """Whether the run that was last at work was ended by us."""
        self.crashes: list[str] = []
        self.books = Books(self.storage, self.uri)

    def start(self) -> Driver:
        """The run at work, started if there is none."""
        if self.driver is None or not self.driver.alive:
            code = 0 if self.driver is None or self.ended else self.driver.wait(0)
            self.crashes += [f"the run before ended by itself with exit code {code}"] if code else []
            self.ended = False
            arguments = ["--space", "bas_cp", "--study", STUDY, "--storage", str(self.storage), "--sampler", "random"]
            arguments += ["--trials", str(self.budget), "--max-concurrent", "2", "--tracking-uri", self.uri]
            arguments += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
            arguments += ["--ray-address", self.cluster.address] if self.cluster else []
            environment = self.cluster.environment if self.cluster else self.environment
            self.driver = Driver(arguments, environment, self.folder / "driver.log")
        return self.driver

    def strike(self, fault: Fault) -> tuple[float, list[str]]:
        """Let one fault happen, in a larger study if this one is complete before.

        Returns:
            Seconds from the start of the run to the fault, and what was not as it must be.
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
                return moment_s, [f"nothing happened for {RUN_LIMIT_S:.0f} s"]
            if code != 0:
                return moment_s, [f"the run ended by itself with exit code {code}"]
            self.budget += MORE_TRIALS

    def wait_for(self, driver: Driver, fault: Fault) -> bool:
        """Wait for a fault's moment; False where the run ends before, or nothing happens for too long."""
        trials = self.storage / STUDY / "trials"
        models = {path.name for path in trials.glob("*/model-*")}
        reported, told = driver.count("  mIoU "), driver.count(f"epoch {EPOCHS}/{EPOCHS}  mIoU ")
        conditions: dict[str, Callable[[], bool]] = {
            "starting": lambda: True,
            "asking": lambda: driver.count("started") + driver.count("continued") >= min(2, fault.nth),
            "training": lambda: driver.count("started") + driver.count("continued") > 0,
            "writing": lambda: sum(path.name not in models for path in trials.glob("*/model-*")) >= fault.nth,
            "reporting": lambda: driver.count("  mIoU ") >= reported + fault.nth,
            "telling": lambda: driver.count(f"epoch {EPOCHS}/{EPOCHS}  mIoU ") >= told + min(2, fault.nth),
            "ending": lambda: driver.count(f"{self.budget}/{self.budget} trials") > 0,
        }
        condition = conditions[fault.moment]
        wait_until(lambda: condition() or not driver.alive, RUN_LIMIT_S, pause_s=0.003)
        if not condition():
            return False
        time.sleep(fault.part * LENGTHS_S.get(fault.moment, 1.0))
        return driver.alive

    def kill(self, driver: Driver) -> None:
        """kill -9 of the driver; what it leaves behind is noted, and what an earlier one left is ended."""
        end(self.orphans)
        self.ended = True
        self.orphans = driver.send(signal.SIGKILL)
        driver.wait(STOP_LIMIT_S)

    def kill_driver(self, driver: Driver, fault: Fault) -> list[str]:
        """kill -9 of the driver; the next run waits for the end of its workers in one case of two."""
        self.kill(driver)
        workers = [process for process in self.orphans if is_worker(process)]
        left = psutil.wait_procs(workers, timeout=30)[1] if fault.pick < 0.5 else []
        return [f"a worker was still there after 30 s: {process}" for process in left]

    def kill_worker(self, driver: Driver, fault: Fault) -> list[str] | None:
        """kill -9 of one of the processes that train; None if the run ends before there is one."""
        wait_until(lambda: bool(driver.workers()) or not driver.alive, RUN_LIMIT_S)
        workers = driver.workers()
        if not workers:
            return None
        before = self.books.deaths()
        end([workers[int(fault.pick * len(workers))]])
        # One that had just ended its trial is not missed, which is why waiting in vain is no problem.
        wait_until(lambda: self.books.deaths() > before or not driver.alive, 10)
        return []

    def stop(self, driver: Driver, fault: Fault) -> list[str] | None:
        """Ctrl-C or SIGTERM, which must end the run in time, with its exit code and nothing open in MLflow."""
        number = signal.SIGINT if fault.pick < 0.5 else signal.SIGTERM
        self.ended = True
        self.orphans += driver.send(number)
        began = time.monotonic()
        code = driver.wait(3 * STOP_LIMIT_S)
        took_s = time.monotonic() - began
        if code is None:
            self.kill(driver)
            return [f"{number.name}: still there after {took_s:.0f} s"]
        if code == 0:
            return None  # it was done already
        if code == -number and not driver.lines:
            return []  # Python was still loading the command: it had begun nothing that could be put in order
        problems = [f"{number.name}: took {took_s:.1f} s to stop"] if took_s > STOP_LIMIT_S else []
        if code != EXIT_CODES[number]:
            problems.append(f"{number.name}: exit code {code}, must be {EXIT_CODES[number]}")
        return problems + self.left_running(driver)

    def left_running(self, driver: Driver) -> list[str]:
        """Runs that a stopped driver left RUNNING in MLflow without a word."""
        if not self.books.records() or driver.count("warning: MLflow at") or driver.count("before a trial ran"):
            return []
        runs = read_runs(self.uri, STUDY, self.books.ledger().metadata.uid)
        return [f"MLflow: the run of trial {run.number} is still RUNNING" for run in runs if run.status == "RUNNING"]

    def kill_tracker(self, driver: Driver, fault: Fault) -> list[str]:
        """kill -9 of the MLflow server, which comes back after up to five seconds and its own start."""
        assert self.server is not None
        self.server.kill()
        time.sleep(5 * fault.pick)
        self.server.start()
        return []

    def kill_node(self, driver: Driver, fault: Fault) -> list[str]:
        """kill -9 of a worker's raylet; once the run has told that, another node joins."""
        assert self.cluster is not None
        told = driver.count(" is lost; ")
        workers = self.cluster.workers()
        workers[int(fault.pick * len(workers))].kill_raylet()

        def noticed() -> bool:
            over = driver.count(f"{self.budget}/{self.budget} trials") > 0  # it needs no node any more
            return driver.count(" is lost; ") > told or over or not driver.alive

        in_time = wait_until(noticed, NEWS_LIMIT_S)
        self.cluster.add_worker().wait()
        return [] if in_time else [f"the run has not noticed the loss of a node after {NEWS_LIMIT_S:.0f} s"]

    def kill_head(self, driver: Driver, fault: Fault) -> list[str]:
        """kill -9 of head and driver; the workers stay behind, while the next run has another cluster."""
        assert self.cluster is not None
        for cluster in self.left:
            cluster.close()
        self.cluster.head.kill()
        self.kill(driver)
        self.left = [self.cluster]
        self.cluster = Cluster(self.environment, workers=2)
        return []

    def check(self) -> list[str]:
        """What is wrong after a fault."""
        crashes, self.crashes = self.crashes, []
        return self.books.check(self.budget) + crashes

    def finish(self) -> list[str]:
        """Let the study come to its end, and audit it as a person would."""
        driver = self.start()
        code = driver.wait(RUN_LIMIT_S)
        if code != 0:
            return [f"the last run has not ended after {RUN_LIMIT_S:.0f} s" if code is None else f"exit code {code}"]
        command = [sys.executable, "-m", "search.audit", "--study", STUDY, "--storage", str(self.storage)]
        command += ["--trials", str(self.budget), "--tracking-uri", self.uri]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        said = (done.stdout + done.stderr).strip().splitlines()
        return self.crashes + self.books.done_again(self.books.records()) + (said if done.returncode else [])

    def close(self) -> None:
        """End every process that was started."""
        if self.driver is not None and self.driver.alive:
            self.kill(self.driver)
        end(self.orphans)
        if self.server is not None:
            self.server.kill()
        for cluster in [*self.left, *([self.cluster] if self.cluster else [])]:
            cluster.close()
