"""The faults of the simulation: what each does to a simulated study, and which a seed chooses."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from scripts.chaos.simulated_study import HOSTS, Study
from search.cli.signals import CODES

FAULTS_S = 60.0
"""Seconds in which the faults begin; the study takes about 30 s without any."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, or merely happens."""

    at: float
    """Seconds since the beginning."""
    what: str
    """One of `FAULTS`."""
    seconds: float = 0.0
    """How long it lasts."""
    count: int = 0
    """Durable writes until a crash; which node."""

    def begin(self, study: Study) -> None:
        """Let it happen to a study."""
        FAULTS[self.what](study, self)


def schedule(seed: int) -> list[Fault]:
    """Return the 3 to 10 faults of a seed, in the order of time."""
    random = Random(f"faults {seed}")
    faults = [
        Fault(
            at=round(random.uniform(0.0, FAULTS_S), 1),
            what=random.choice(list(FAULTS)),
            seconds=random.choice((2.0, 10.0, 40.0, 90.0)),
            count=random.randrange(12),
        )
        for _ in range(random.randint(3, 10))
    ]
    return sorted(faults, key=lambda fault: fault.at)


def crash_driver(study: Study, fault: Fault) -> None:
    """Let a driver crash at one of its next durable writes."""
    for process in list(study.drivers)[:1]:
        process.writes_left, process.torn = fault.count, fault.count % 2 == 0


def freeze_driver(study: Study, fault: Fault) -> None:
    """Stop a driver, at once or before its next transaction, and start another one before it goes on."""
    for process in list(study.drivers)[:1]:
        if fault.count % 2:
            process.stall_s = fault.seconds
        else:
            process.frozen_until = study.clock.now + fault.seconds
        study.clock.call_at(study.clock.now + fault.seconds - 1.0, partial(second_driver, study, fault))


def second_driver(study: Study, fault: Fault) -> None:
    """Run the command although another driver runs."""
    if not study.done:
        study.start_driver(HOSTS[fault.count % 2])


def stop_driver(study: Study, fault: Fault) -> None:
    """Send SIGTERM to a driver."""
    for signals in list(study.drivers.values())[:1]:
        if signals.gentle:
            signals.received = next(iter(CODES))


def crash_worker(study: Study, fault: Fault) -> None:
    """Let a worker crash at one of its next durable writes."""
    for node in busy_nodes(study, fault):
        node.worker.writes_left, node.worker.torn = fault.count, fault.count % 2 == 0


def busy_nodes(study: Study, fault: Fault) -> list[Any]:
    """Return one of the nodes on which a trial runs, or none."""
    busy = [node for node in study.cluster.alive if node.worker is not None]
    return busy[fault.count % len(busy) :][:1] if busy else []


def cut_power(study: Study, fault: Fault) -> None:
    """End all drivers and workers at once; files lose what was not durable."""
    for process in study.clock.processes:
        process.kill()
    study.disk.lose_power()


def for_a_while(target: str, name: str, value: Any, normal: Any) -> Callable[[Study, Fault], None]:
    """Return a fault that sets an attribute of a part of the study for some seconds; the latest of several counts."""

    def apply(study: Study, fault: Fault) -> None:
        part, values = getattr(study, target), study.lasting.setdefault((target, name), [normal])

        def end() -> None:
            values.remove(value)
            setattr(part, name, values[-1])

        values.append(value)
        setattr(part, name, value)
        study.clock.call_at(study.clock.now + fault.seconds, end)

    return apply


FAULTS: dict[str, Callable[[Study, Fault], None]] = {
    "driver crashes": crash_driver,
    "driver freezes": freeze_driver,
    "driver gets SIGTERM": stop_driver,
    "second driver": second_driver,
    "worker crashes": crash_worker,
    "trial raises": lambda study, fault: setattr(study, "raising", 1),
    "node dies": lambda study, fault: [study.cluster.kill_node(node) for node in busy_nodes(study, fault)],
    "node freezes": lambda study, fault: [
        study.cluster.freeze_node(node, fault.seconds) for node in busy_nodes(study, fault)
    ],
    "node joins": lambda study, fault: study.cluster.join(),
    "report arrives late": lambda study, fault: setattr(study.cluster, "arrivals_s", (fault.seconds,)),
    "report arrives twice": lambda study, fault: setattr(study.cluster, "arrivals_s", (0.0, 0.0)),
    "old report arrives again": lambda study, fault: setattr(study.cluster, "arrivals_s", (0.0, fault.seconds)),
    "power cut": cut_power,
    "disk is full": for_a_while("disk", "fault", errno.ENOSPC, None),
    "disk fails": for_a_while("disk", "fault", errno.EIO, None),
    "folders are stale": for_a_while("disk", "stale", True, False),
    "database fails": for_a_while("database", "failing", True, False),
    "MLflow is slow": for_a_while("mlflow", "fault", "slow", None),
    "MLflow refuses": for_a_while("mlflow", "fault", "refuses", None),
    "MLflow stores half": for_a_while("mlflow", "fault", "half", None),
    "MLflow is gone": for_a_while("mlflow", "fault", "gone", None),
}
"""What may go wrong, by name."""
