"""What a trial costs beside its training: python -m scripts.bench.trial [--trials 4] [--model b0]

Runs a small study under Ray, one trial at a time, on procedural scenes, and notes when things happen in the driver and
in the worker.  Each cost is to stay under 5 % of a trial of two minutes.
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
WARM_GOAL_S = 1.0
"""From ask to the first step on a worker that has trained before."""


@dataclass(frozen=True)
class Events:
    """When things happened, in seconds since 1970: `times[event][trial]`, each in order."""

    times: dict[str, dict[int, list[float]]]

    @classmethod
    def read(cls, path: Path) -> "Events":
        times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in path.read_text().splitlines():
            event, number, when = line.split()
            times[event][int(number)].append(float(when))
        return cls(times)

    def span(self, number: int, begin: str, end: str) -> float:
        """From the first `begin` of a trial to its first `end`."""
        return self.times[end][number][0] - self.times[begin][number][0]

    def sums(self, number: int, begin: str, end: str) -> list[float]:
        """Every stretch from a `begin` of a trial to the `end` that follows it."""
        return [b - a for a, b in zip(self.times[begin][number], self.times[end][number], strict=True)]

    def until_next_ask(self, number: int) -> float:
        """From the end of a trial's last step to the moment when the next trial is asked for."""
        last = self.times["stepped"][number][-1]
        return min(when for when in self.times["asking"][-1] if when > last) - last


def mark(path: str, event: str, number: int) -> None:
    """Note that something happens now; several processes may write at once."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{event} {number} {time.time()}\n")


def traced_trial(path: str) -> Callable[[dict[str, Any]], None]:
    """What a worker does, with notes of its steps and checkpoints."""

    def run_trial(config: dict[str, Any]) -> None:
        from fgseg.checkpoints.checkpoint import Checkpoints
        from fgseg.training.compiled_step import CompiledStep
        from fgseg.training.step import Step
        from search.execution import worker as trial

        def noted(call: Callable, begin: str, end: str) -> Callable:
            def noting(*arguments: Any) -> Any:
                mark(path, begin, config["number"])
                result = call(*arguments)
                mark(path, end, config["number"])
                return result

            return noting

        mark(path, "start", config["number"])
        parts = [(Step, "__call__", "step", "stepped"), (CompiledStep, "__call__", "step", "stepped")]
        parts += [(Checkpoints, "save", "save", "saved")]
        before = [getattr(owner, name) for owner, name, *_ in parts]
        for (owner, name, *events), call in zip(parts, before, strict=True):
            setattr(owner, name, noted(call, *events))
        try:
            trial.run_trial(config)
        finally:  # the worker serves the next trial as well
            for (owner, name, *_), call in zip(parts, before, strict=True):
                setattr(owner, name, call)

    return run_trial


def trace(path: str) -> None:
    """Note when this process asks for trials, and give workers the traced trial."""
    import search.execution.ray_tune
    from search.ledger.ledger import Ledger

    ask = Ledger.next_attempt

    def noted_ask(ledger: Ledger) -> Any:
        mark(path, "asking", -1)
        answer = ask(ledger)
        if answer is not None:
            mark(path, "asked", answer.number)
        return answer

    Ledger.next_attempt = noted_ask  # type: ignore[method-assign]
    search.execution.ray_tune.run_trial = traced_trial(path)


def load_s(storage: Path, rounds: int = 3) -> float:
    """Seconds to find, read and verify the newest checkpoint of a trial."""
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
    """The rows: the first trial, the median of the later ones, and the goal."""
    first, *later = range(trials)

    def row(name: str, of: Callable[[int], float], goal: str) -> str:
        return f"| {name} | {of(first):.2f} s | {statistics.median(map(of, later)):.2f} s | {goal} |"

    goal = f"{GOAL_S:g} s"
    return [
        "| what | first trial | later ones | goal |",
        "|---|---|---|---|",
        row(
            "from ask to the first step", lambda n: events.span(n, "asked", "step"), f"{goal}, later {WARM_GOAL_S:g} s"
        ),
        row("- until the worker begins", lambda n: events.span(n, "asked", "start"), ""),
        row("- until model and data are there", lambda n: events.span(n, "start", "step"), ""),
        row("from the last step to the next ask", events.until_next_ask, goal),
        row("- after the last checkpoint", lambda n: events.until_next_ask(n) - saved_after(events, n), ""),
        row("checkpoint write", lambda n: statistics.median(events.sums(n, "save", "saved")), goal),
        f"| checkpoint load | {load:.2f} s | {load:.2f} s | {goal} |",
    ]


def saved_after(events: Events, number: int) -> float:
    """From a trial's last step to its last checkpoint: the validation and the writing."""
    return events.times["saved"][number][-1] - events.times["stepped"][number][-1]


def main(arguments: list[str] | None = None) -> int:
    """Run the study, and print the table; returns the exit code of the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, metavar="N", help="trials of the study, at least 2")
    parser.add_argument("--model", default="b0", help="small or b0..b5 (default: b0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings of the trials")
    options = parser.parse_args(arguments)
    from search.cluster.ray_cluster import ray_environment
    from search.run import main as search

    os.environ.update(ray_environment())  # Ray reads them when it is imported
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
