"""Record the order in which Ray Tune calls its hooks: `python -m scripts.chaos.ray_sequences FILE` runs Ray.

The simulated Ray must call them in the same order (tests/scripts_tests/test_simulate.py).
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

SCENARIOS = ("returns", "is stopped", "raises", "worker dies", "node dies")
"""What a trial of three epochs does after its first epoch."""


class RecordingSearcher(Searcher):
    """Suggests one trial; records the calls in `calls`."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(metric="epoch", mode="max")
        self.calls, self.suggested = calls, False

    def suggest(self, trial_id: str) -> Any:
        found = Searcher.FINISHED if self.suggested else {"any": 1}
        self.suggested = True
        self.calls.append(f"searcher.suggest: {'FINISHED' if found == Searcher.FINISHED else 'a trial'}")
        return found

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.calls.append(f"searcher.on_trial_result: epoch {result['epoch']}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        epoch = "no result" if result is None else f"epoch {result['epoch']}"
        self.calls.append(f"searcher.on_trial_complete: {epoch}, error {error}")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class RecordingScheduler(FIFOScheduler):
    """Stops the trial after its first epoch in the scenario `is stopped`; records the calls in `calls`."""

    def __init__(self, calls: list[str], scenario: str) -> None:
        super().__init__()
        self.calls, self.scenario = calls, scenario

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.calls.append(f"scheduler.on_trial_result: epoch {result['epoch']}")
        return TrialScheduler.STOP if self.scenario == "is stopped" else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.calls.append(f"scheduler.on_trial_complete: epoch {result['epoch']}")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.calls.append("scheduler.on_trial_error")


class RecordingCallback(tune.Callback):
    """Records the calls in `calls`."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self.calls.append(f"callback.on_trial_result: epoch {result['epoch']}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.calls.append("callback.on_trial_complete")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.calls.append("callback.on_trial_error")


def train(config: dict[str, Any], scenario: str, die: Callable[[str], None]) -> None:
    """Report three epochs, unless the scenario ends the trial after its first."""
    for epoch in (1, 2, 3):
        tune.report({"epoch": epoch})
        if scenario == "raises":
            raise RuntimeError("on purpose")
        if scenario.endswith("dies"):
            die(scenario)


def record(scenario: str, die: Callable[[str], None]) -> list[str]:
    """Run one trial, and return the calls of the hooks in order.

    Args:
        scenario: one of SCENARIOS.
        die: ends the worker that calls it, or its node.
    """
    calls: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            partial(train, scenario=scenario, die=die),
            tune_config=tune.TuneConfig(
                search_alg=RecordingSearcher(calls),
                scheduler=RecordingScheduler(calls, scenario),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                callbacks=[RecordingCallback(calls)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    return calls


def die_really(scenario: str) -> None:
    """End this worker, or the node that is its parent process."""
    os.kill(os.getppid() if scenario == "node dies" else os.getpid(), signal.SIGKILL)
    signal.pause()


def main(path: str) -> None:
    """Record all scenarios on a cluster of two nodes, of which one runs no trials, into a JSON file."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    sequences = {"ray": ray.__version__, **{scenario: record(scenario, die_really) for scenario in SCENARIOS}}
    Path(path).write_text(json.dumps(sequences, indent=1) + "\n", encoding="utf-8")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
