"""Measure the overhead of a trial: python -m scripts.bench.trial [--trials 4] [--model b0]

Runs a small study under Ray, one trial at a time, on procedural scenes, and records the times of events in the driver
and in the worker.  Goal: each cost is under 5 % of a trial of two minutes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOAL_S = 0.05 * 120
"""Maximum seconds of each cost: 5 % of two minutes."""
WARM_GOAL_S = 1.0
"""Maximum seconds from suggestion to first step on a worker that has trained before."""


@dataclass(frozen=True)
class Events:
    """Times of events in seconds since 1970, as `times[event][trial]` in order."""

    times: dict[str, dict[int, list[float]]]

    @classmethod
    def read(cls, path: Path) -> "Events":
        """Read the file written by `record_event`."""
        times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in path.read_text().splitlines():
            event, number, when = line.split()
            times[event][int(number)].append(float(when))
        return cls(times)

    def span(self, number: int, begin: str, end: str) -> float:
        """Return the seconds from the first `begin` of a trial to its first `end`."""
        return self.times[end][number][0] - self.times[begin][number][0]

    def sums(self, number: int, begin: str, end: str) -> list[float]:
        """Return the seconds from each `begin` of a trial to the next `end`."""
        return [b - a for a, b in zip(self.times[begin][number], self.times[end][number], strict=True)]

    def until_next_ask(self, number: int) -> float:
        """Return the seconds from the end of a trial's last step to the start of the next suggestion."""
        last = self.times["stepped"][number][-1]
        return min(when for when in self.times["asking"][-1] if when > last) - last


def record_event(path: str, event: str, number: int) -> None:
    """Append an event with the current time; several processes may write at once."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{event} {number} {time.time()}\n")


def traced_trial(path: str) -> Callable[[dict[str, Any]], None]:
    """Return a replacement of the worker's `run_trial` that records its steps and checkpoints."""

    def run_trial(config: dict[str, Any]) -> None:
        from fgseg.checkpoints.checkpoint import Checkpoints
        from fgseg.training.compiled_step import CompiledStep
        from fgseg.training.step import Step
        from search.execution import worker

        def recorded(call: Callable, begin: str, end: str) -> Callable:
            def wrapper(*arguments: Any) -> Any:
                record_event(path, begin, config["number"])
                result = call(*arguments)
                record_event(path, end, config["number"])
                return result

            return wrapper

        record_event(path, "start", config["number"])
        parts = [(Step, "__call__", "step", "stepped"), (CompiledStep, "__call__", "step", "stepped")]
        parts += [(Checkpoints, "save", "save", "saved")]
        before = [getattr(owner, name) for owner, name, *_ in parts]
        for (owner, name, *events), call in zip(parts, before, strict=True):
            setattr(owner, name, recorded(call, *events))
        try:
            worker.run_trial(config)
        finally:  # Ray Tune reuses the process for the next trial
            for (owner, name, *_), call in zip(parts, before, strict=True):
                setattr(owner, name, call)

    return run_trial


def trace(path: str) -> None:
    """Record suggestions of this process, and replace the trial of its workers by `traced_trial`."""
    import search.execution.ray_tune
    from search.ledger.ledger import Ledger

    next_attempt = Ledger.next_attempt

    def recorded_next_attempt(ledger: Ledger) -> Any:
        record_event(path, "asking", -1)
        attempt = next_attempt(ledger)
        if attempt is not None:
            record_event(path, "asked", attempt.number)
        return attempt

    Ledger.next_attempt = recorded_next_attempt  # type: ignore[method-assign, assignment]
    search.execution.ray_tune.run_trial = traced_trial(path)  # type: ignore[assignment]


def load_s(storage: Path, rounds: int = 3) -> float:
    """Return the median seconds to find, read and verify the newest checkpoint of a trial."""
    from fgseg.checkpoints.checkpoint import newest_checkpoint
    from fgseg.storage.store import LocalStore

    folder = next(storage.rglob("model-*.safetensors")).parent
    spans = []
    for _ in range(rounds):
        started = time.perf_counter()
        assert newest_checkpoint(LocalStore(folder)) is not None
        spans.append(time.perf_counter() - started)
    return statistics.median(spans)


def table(events: Events, trials: int, load: float) -> list[str]:
    """Format the table: the first trial, the median of the later trials, and the goal."""
    first, *later = range(trials)

    def row(name: str, of: Callable[[int], float], goal: str) -> str:
        return f"| {name} | {of(first):.2f} s | {statistics.median(map(of, later)):.2f} s | {goal} |"

    goal = f"{GOAL_S:g} s"
    return [
        "| what | first trial | later ones | goal |",
        "|---|---|---|---|",
        row(
            "from suggestion to first step",
            lambda n: events.span(n, "asked", "step"),
            f"{goal}, later {WARM_GOAL_S:g} s",
        ),
        row("- until the worker starts", lambda n: events.span(n, "asked", "start"), ""),
        row("- until model and data are loaded", lambda n: events.span(n, "start", "step"), ""),
        row("from last step to next suggestion", events.until_next_ask, goal),
        row("- after the last checkpoint", lambda n: events.until_next_ask(n) - saved_after(events, n), ""),
        row("checkpoint write", lambda n: statistics.median(events.sums(n, "save", "saved")), goal),
        f"| checkpoint load | {load:.2f} s | {load:.2f} s | {goal} |",
    ]


def saved_after(events: Events, number: int) -> float:
    """Return the seconds from a trial's last step to its last checkpoint: validation and write."""
    return events.times["saved"][number][-1] - events.times["stepped"][number][-1]


def main(arguments: list[str] | None = None) -> int:
    """Run a study and print the table; returns the exit code of the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, metavar="N", help="trials of the study, at least 2")
    parser.add_argument("--model", default="b0", help="small or b0..b5 (default: b0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings of the trials")
    options = parser.parse_args(arguments)
    from search.cluster.ray_cluster import set_ray_environment
    from search.run import main as search

    set_ray_environment()  # before the import of Ray, which reads them
    with tempfile.TemporaryDirectory() as folder:
        notes, storage = Path(folder) / "events", Path(folder) / "runs"
        trace(str(notes))
        few = [
            "data.train=8",
            "data.val=4",
            "train.epochs=2",
            f"data.cache={folder}/cache",
            f"model.name={options.model}",
        ]
        command = ["--space", "bas_cp", "--trials", str(options.trials), "--max-concurrent", "1", "--sampler", "random"]
        command += ["--storage", str(storage), "--config", str(ROOT / "configs" / "quickstart.yaml")]
        for setting in [*few, *options.set]:
            command += ["--set", setting]
        code = search(command)
        if code == 0:
            print(f"{os.cpu_count()} cores, a load of {os.getloadavg()[0]:.1f}; model {options.model}")
            print("\n".join(table(Events.read(notes), options.trials, load_s(storage))))
    return code


if __name__ == "__main__":
    sys.exit(main())
