"""A simulated Ray: nodes, workers, and Ray Tune's loop with the order of its calls (ray 2.60, `TuneController`).

The tests compare the order of the calls with sequences recorded from Ray (tests/scripts_tests/ray_sequences.json).
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from scripts.chaos.virtual_time import Clock, Event, Killed, Process, Thread
from search.study.resources import Node, Resources

STEP_S = 1.0
"""Longest wait of a step of Ray Tune for an event; 0.1 s in Ray, here fewer steps for the same events."""
NODE_DIES_S, WORKER_DIES_S = 5.0, 1.0
"""Seconds until Ray Tune notices that a node's connection or a process has ended."""
DECLARED_DEAD_S = 15.0
"""Seconds until Ray's list of nodes lacks a dead node."""
FREEZE_S = 65.0
"""Seconds without a heartbeat until Ray declares a frozen node dead, for ever."""
ON_TIME_S = (0.0,)
"""Arrivals of a report without a fault, see `Cluster.arrivals_s`."""


@dataclass
class SimulatedNode:
    """A node of the cluster, with a place for one trial."""

    id: str
    listens: bool = True
    listed: bool = True
    frozen_until: float = 0.0
    worker: Process | None = None
    on_removal: Callable[[], None] = lambda: None
    """Tells Ray Tune that the worker is lost."""

    def remove(self) -> None:
        """Declare the node dead."""
        self.listed = False
        self.on_removal()


@dataclass(eq=False)
class SimulatedTrial:
    """A trial of Ray Tune, i.e. one attempt of a trial of the study."""

    trial_id: str
    config: dict[str, Any]
    status: str = "PENDING"
    node: SimulatedNode | None = None
    last_result: dict[str, Any] = field(default_factory=dict)
    acknowledged: Event | None = None


class Cluster:
    """The nodes, which outlive a driver.

    Attributes:
        arrivals_s: seconds until each arrival of the next report.
    """

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock, self.random = clock, random
        self.nodes: list[SimulatedNode] = []
        self.workers: dict[Process, tuple[SimulatedTuner, SimulatedTrial]] = {}
        self.arrivals_s = ON_TIME_S

    def join(self) -> None:
        """Add a node."""
        self.nodes.append(SimulatedNode(f"node{len(self.nodes):02d}"))

    @property
    def alive(self) -> list[SimulatedNode]:
        """The nodes that accept connections and are not declared dead."""
        return [node for node in self.nodes if node.listens and node.listed]

    def alive_nodes(self) -> list[Node]:
        """Return the nodes that Ray lists as alive, in place of the function in search/cluster/node_probe.py."""
        return [Node(node.id, node.id, 1, node.id, 1, 0) for node in self.nodes if node.listed]

    def answers(self, address: str) -> bool:
        """Return whether an address accepts connections, in place of the function in search/study/resources.py."""
        return all(node.listens for node in self.nodes if address == f"{node.id}:1")

    @contextmanager
    def resources(self, *arguments: object) -> Iterator[Resources]:
        """Start or join the cluster, in place of the function in search/cluster/ray_cluster.py."""
        self.clock.sleep(2.0)
        while len(self.alive) < 2:
            self.join()
        yield Resources(1, 0, 8, 1)

    def kill_node(self, node: SimulatedNode) -> None:
        """End a node: its port closes at once, Ray's list of nodes lacks it later."""
        node.listens = False
        if node.worker is not None:
            node.worker.kill()
        self.clock.call_at(self.clock.now + DECLARED_DEAD_S, node.remove)

    def freeze_node(self, node: SimulatedNode, seconds: float) -> None:
        """Stop a node for some seconds; after FREEZE_S it is declared dead, and what it runs has been replaced."""
        node.frozen_until = self.clock.now + seconds
        if node.worker is not None:
            node.worker.frozen_until = node.frozen_until
        if seconds > FREEZE_S:
            self.clock.call_at(self.clock.now + FREEZE_S, node.remove)

    def report(self, metrics: dict[str, Any]) -> None:
        """Send a result to the driver and wait until it is processed, in place of `ray.tune.report`."""
        tuner, trial = self.workers[self.clock.process]
        trial.acknowledged = Event(clock=self.clock)
        arrivals_s, self.arrivals_s = self.arrivals_s, ON_TIME_S
        for delay_s in arrivals_s:
            self.clock.call_at(self.clock.now + delay_s, partial(tuner.deliver, trial, metrics))
        trial.acknowledged.wait()

    def context(self) -> Any:
        """Return what the product uses of Ray's runtime context."""
        return SimpleNamespace(get_node_id=lambda: self.clock.process.host, gcs_address="head")


class SimulatedTuner:
    """Runs the trials, in place of `ray.tune.Tuner`: the calls of its hooks, one step after the other."""

    def __init__(
        self, cluster: Cluster, trainable: Callable[[Any], None], *, tune_config: Any, run_config: Any
    ) -> None:
        self.cluster, self.clock, self.trainable = cluster, cluster.clock, trainable
        self.searcher, self.scheduler = tune_config.search_alg, tune_config.scheduler
        self.callbacks = run_config.callbacks
        self.trials: list[SimulatedTrial] = []
        self.events: deque[tuple[SimulatedTrial, dict[str, Any] | None]] = deque()
        self.arrived = Event(clock=self.clock)
        self.finished, self.iteration = False, 0

    def fit(self) -> None:
        """Run until the searcher has finished and no trial is left; an exception of a hook ends it."""
        try:
            while not self.finished or self.running("PENDING", "RUNNING"):
                self.step()
        finally:
            for trial in self.running("RUNNING"):  # they end with their driver, but not at once
                assert trial.node is not None
                worker = trial.node.worker
                if worker is not None:
                    self.clock.call_at(self.clock.now + self.cluster.random.uniform(0.1, 2.0), worker.kill)
                    trial.node.worker = None

    def running(self, *states: str) -> list[SimulatedTrial]:
        """Return the trials in one of these states."""
        return [trial for trial in self.trials if trial.status in states]

    def step(self) -> None:
        """Carry out a step: suggestions, starts, one event."""
        for callback in self.callbacks:
            callback.on_step_begin(iteration=self.iteration, trials=self.trials)
        self.iteration += 1
        while not self.finished and self.suggest():
            pass
        for trial in self.running("PENDING"):
            self.start(trial)
        if not self.events:
            self.arrived.flag = False
            self.arrived.wait(STEP_S)
        if self.events:
            trial, result = self.events.popleft()
            if trial.status == "RUNNING":
                self.on_failure(trial) if result is None else self.on_result(trial, result)

    def suggest(self) -> bool:
        """Ask the searcher for a trial; returns whether it has suggested one."""
        trial_id = f"{len(self.trials):08x}"
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self.finished = True
        if config is None or self.finished:
            return False
        self.trials.append(SimulatedTrial(trial_id, config))
        return True

    def start(self, trial: SimulatedTrial) -> None:
        """Start the worker of a trial on a free node, if there is one."""
        free = [n for n in self.cluster.alive if n.worker is None and n.frozen_until <= self.clock.now]
        if not free:
            return
        trial.node, trial.status = self.cluster.random.choice(free), "RUNNING"
        trial.node.worker = worker = Process(self.clock, host=trial.node.id)
        worker.on_death, trial.node.on_removal = partial(self.lose, trial), partial(self.deliver, trial, None)
        self.cluster.workers[worker] = self, trial
        Thread(self.work, (trial,), process=worker, clock=self.clock).start()

    def work(self, trial: SimulatedTrial) -> None:
        """Run the trainable in the worker; when it returns, Ray Tune gets its last result again."""
        try:
            self.trainable(trial.config)
        except Killed:
            raise
        except Exception:
            self.deliver(trial, None)
        else:
            self.deliver(trial, {"__duplicate__": True})

    def lose(self, trial: SimulatedTrial) -> None:
        """Let Ray Tune notice after some seconds that the process of a trial has ended."""
        delay_s = WORKER_DIES_S if trial.node is not None and trial.node.listens else NODE_DIES_S
        self.clock.call_at(self.clock.now + delay_s, partial(self.deliver, trial, None))

    def deliver(self, trial: SimulatedTrial, result: dict[str, Any] | None) -> None:
        """Put a result in the queue of events; None: the worker is lost."""
        self.events.append((trial, result))
        self.arrived.set()

    def on_result(self, trial: SimulatedTrial, result: dict[str, Any]) -> None:
        """Call the hooks for a result: the searcher's only where the scheduler lets the trial continue."""
        returned = "__duplicate__" in result
        result = trial.last_result if returned else dict(result)
        stop = returned or self.scheduler.on_trial_result(self, trial, dict(result)) == TrialScheduler.STOP
        if not stop:
            self.searcher.on_trial_result(trial.trial_id, dict(result))
        if not returned:
            for callback in self.callbacks:
                callback.on_trial_result(iteration=self.iteration, trials=self.trials, trial=trial, result=result)
            trial.last_result = result
        if stop:
            self.end(trial)
        elif trial.acknowledged is not None:
            trial.acknowledged.set()

    def end(self, trial: SimulatedTrial) -> None:
        """Call the hooks for a trial that was stopped or has returned, and end its worker."""
        self.scheduler.on_trial_complete(self, trial, dict(trial.last_result))
        self.searcher.on_trial_complete(trial_id=trial.trial_id, result=dict(trial.last_result), error=False)
        for callback in self.callbacks:
            callback.on_trial_complete(iteration=self.iteration, trials=self.trials, trial=trial)
        self.release(trial, "TERMINATED")

    def on_failure(self, trial: SimulatedTrial) -> None:
        """Call the hooks for a trial whose worker is lost."""
        self.scheduler.on_trial_error(self, trial)
        self.searcher.on_trial_complete(trial_id=trial.trial_id, result=None, error=True)
        self.release(trial, "ERROR")
        for callback in self.callbacks:
            callback.on_trial_error(iteration=self.iteration, trials=self.trials, trial=trial)

    def release(self, trial: SimulatedTrial, status: str) -> None:
        """Free the node of an ended trial; the worker of a frozen node goes on as soon as it can."""
        trial.status = status
        node = trial.node
        if node is not None and node.worker is not None:
            if node.frozen_until <= self.clock.now:
                node.worker.kill()
            node.worker = None
