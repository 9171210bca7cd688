"""The runs of the orchestration benchmark: `search.run` under stop watches, and Ray Tune alone.

Ray reads its environment when it is imported, so that is left to the functions.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from search.execution.trial_events import TrialEventHandler
from search.run import main as run_search
from search.tracking.run_writer import StudyRunWriter

RECENT = 50
"""Trials over which a figure "at the Nth trial" is taken."""
TINY = ("data.height=64", "data.width=128", "data.train=4", "data.val=2", "data.test=2")


@dataclass
class Watches:
    """What the driver spends on each event, in order: for asks, epochs and ends of trials."""

    ask_s: list[float] = field(default_factory=list)
    epoch_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    """When each trial ended, in seconds."""
    written: list[tuple[float, float]] = field(default_factory=list)
    """When MLflow's thread had written something, and how many seconds that took."""
    rows: list["Row"] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """Where the driver stands after so many trials."""

    ended: int
    driver_mib: float
    worker_mib: float
    """Of the median worker, what it shares with others divided among them."""
    epoch_ms: float
    tracking_ms: float
    """What MLflow's thread, beside the driver's, takes for an epoch, waiting for its turn included."""
    ask_s: float
    end_ms: float
    trial_s: float
    """Seconds from one trial's end to the next one's, before the last trials come to their ends."""


@contextmanager
def watching(
    watches: Watches, rows_at: tuple[int, ...], epochs: int, at_once: int, show: Callable[[Row], None]
) -> Iterator[None]:
    """Time every event that the desk enters into the books, tracking and display included.

    A row is taken, and shown, when as many trials have ended as `rows_at` says; `epochs` are a trial's, of which
    `at_once` run.
    """
    write = StudyRunWriter.write_changes
    plain = {name: getattr(TrialEventHandler, name) for name in ("next_attempt", "on_report", "on_trial_end")}

    def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            answer = call(*arguments, **named)
            if call is not plain["next_attempt"] or answer is not None:  # at the end, there is nothing to be asked for
                seconds.append(time.perf_counter() - started)
            return answer

        return wrapper

    timed_close = timed(plain["on_trial_end"], watches.end_s)

    def close(*arguments: Any, **named: Any) -> None:
        timed_close(*arguments, **named)
        watches.moments.append(time.monotonic())
        if len(watches.moments) in rows_at:
            watches.rows.append(take_row(watches, epochs, at_once))
            show(watches.rows[-1])

    def write_changes(*arguments: Any) -> None:
        started = time.monotonic()
        write(*arguments)
        watches.written.append((time.monotonic(), time.monotonic() - started))

    StudyRunWriter.write_changes = write_changes
    TrialEventHandler.next_attempt, TrialEventHandler.on_report, TrialEventHandler.on_trial_end = (
        timed(plain["next_attempt"], watches.ask_s),
        timed(plain["on_report"], watches.epoch_s),
        close,
    )
    try:
        yield
    finally:
        StudyRunWriter.write_changes = write
        for name, call in plain.items():
            setattr(TrialEventHandler, name, call)


def take_row(watches: Watches, epochs: int, at_once: int) -> Row:
    """The figures of the last `RECENT` trials; their pace while others were still to begin."""
    driver = psutil.Process()
    workers = [mib for process in driver.children(recursive=True) if (mib := worker_mib(process))]
    moments = watches.moments[: max(2, len(watches.moments) - at_once)][-RECENT:]
    recent = sum(seconds for moment, seconds in watches.written if moments[0] < moment <= moments[-1])
    return Row(
        len(watches.moments),
        driver.memory_info().rss / 2**20,
        median(workers or [0]),
        1000 * median(watches.epoch_s[-RECENT * epochs :]),
        1000 * recent / (epochs * max(1, len(moments) - 1)),
        median(watches.ask_s[-RECENT:]),
        1000 * median(watches.end_s[-RECENT:]),
        (moments[-1] - moments[0]) / max(1, len(moments) - 1),
    )


def worker_mib(process: psutil.Process) -> float:
    """Memory of a worker's process, 0 if it is none or has just gone."""
    try:
        is_worker = "ray::" in " ".join(process.cmdline()[:1])
        return float(process.memory_full_info().pss / 2**20) if is_worker else 0.0
    except psutil.Error:
        return 0.0


def search_once(
    folder: Path, *, trials: int, at_once: int, epochs: int, epoch_s: float, sampler: str, spread_s: float = 0.0
) -> float:
    """A whole `search.run` on `at_once` simulated GPUs, with replaying workers; returns its seconds.

    Args:
        folder: the storage.
        trials: the budget.
        at_once: trials at a time.
        epochs: of a trial.
        epoch_s: what one lasts, seconds.
        sampler: the setting of that name.
        spread_s: over how long the first trials begin.
    """
    import search.execution.ray_tune
    from scripts.bench.replay import Gate, replay

    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(at_once)))
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": at_once, "GPU": at_once})
    gate = folder / "gate"
    gate.mkdir()
    search.execution.ray_tune.run_trial = replay(epoch_s, Gate(str(gate), min(at_once, trials), spread_s))
    sets = [*TINY, f"train.epochs={epochs}", f"data.cache={folder / 'cache'}"]
    arguments = ["--space", "slc", "--study", "load", "--storage", str(folder), "--trials", str(trials)]
    arguments += ["--sampler", sampler]
    started = time.monotonic()
    with (folder / "run.log").open("w") as log, redirect_stdout(log):
        code = run_search([*arguments, *(part for text in sets for part in ("--set", text))])
    if code != 0:
        raise SystemExit(f"search.run ended with {code}; see the end of its output:\n{tail(folder / 'run.log')}")
    return time.monotonic() - started


def tail(path: Path) -> str:
    """The last lines of a text file."""
    return "\n".join(path.read_text().splitlines()[-5:])


def time_no_op(trials: int, at_once: int) -> float:
    """Seconds from one end to the next of Ray Tune's own trials that do nothing, once all workers are up."""
    import ray
    from ray import tune

    from scripts.bench.replay import Gate, no_op

    moments: list[float] = []

    class Note(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            moments.append(time.monotonic())

    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as gate:
            tune.Tuner(
                tune.with_resources(no_op(Gate(gate, min(at_once, trials))), {"cpu": 1}),
                tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_once, reuse_actors=True),
                run_config=tune.RunConfig(name="no-op", storage_path=scratch, verbose=0, callbacks=[Note()]),
            ).fit()
    finally:
        ray.shutdown()
    moments = moments[: max(2, len(moments) - at_once)][-RECENT:]
    return (moments[-1] - moments[0]) / max(1, len(moments) - 1)
