"""Runs of the orchestration benchmark: `search.run` with timed events, and Ray Tune alone.

Functions import Ray themselves, since Ray 2 reads its environment variables at import.
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
"""Number of latest trials over which the medians of a row are taken."""
TINY = ("data.height=64", "data.width=128", "data.train=4", "data.val=2", "data.test=2")


@dataclass
class Timings:
    """Seconds that the driver spends on each event, in order: suggestions, epochs and ends of trials."""

    suggest_s: list[float] = field(default_factory=list)
    epoch_s: list[float] = field(default_factory=list)
    epoch_cpu_s: list[float] = field(default_factory=list)
    """Processor time of the driver's thread for each epoch."""
    end_s: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    """End of each trial on the monotonic clock, in seconds."""
    written: list[tuple[float, float]] = field(default_factory=list)
    """End of each write of MLflow's thread on the monotonic clock, and its duration; seconds."""
    rows: list["Row"] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """Measurements after `ended` trials."""

    ended: int
    driver_mib: float
    worker_mib: float
    """Proportional set size (PSS) of the median worker."""
    epoch_ms: float
    """Time of the driver's thread per epoch, including its waits for the processor, the disk and other threads."""
    epoch_cpu_ms: float
    """Processor time of the driver's thread per epoch."""
    tracking_ms: float
    """Time of MLflow's thread per epoch, including its waits for the interpreter lock."""
    suggest_s: float
    end_ms: float
    trial_s: float
    """Seconds from the end of one trial to the end of the next, while trials still start."""


@contextmanager
def watching(
    timings: Timings, rows_at: tuple[int, ...], epochs: int, at_once: int, show: Callable[[Row], None]
) -> Iterator[None]:
    """Time every event of `TrialEventHandler`, including ledger, tracking and display.

    Args:
        timings: receives the measurements.
        rows_at: numbers of ended trials at which a row is computed and shown.
        epochs: of a trial.
        at_once: number of concurrent trials.
        show: called with each row.
    """
    write = StudyRunWriter.write_changes
    plain = {name: getattr(TrialEventHandler, name) for name in ("next_attempt", "on_report", "on_trial_end")}

    def timed(call: Callable[..., Any], seconds: list[float], cpu_s: list[float] | None = None) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            started, cpu = time.perf_counter(), time.thread_time()
            result = call(*arguments, **named)
            if call is not plain["next_attempt"] or result is not None:  # None: no trial is left
                seconds.append(time.perf_counter() - started)
                if cpu_s is not None:
                    cpu_s.append(time.thread_time() - cpu)
            return result

        return wrapper

    timed_end = timed(plain["on_trial_end"], timings.end_s)

    def on_trial_end(*arguments: Any, **named: Any) -> None:
        timed_end(*arguments, **named)
        timings.moments.append(time.monotonic())
        if len(timings.moments) in rows_at:
            timings.rows.append(take_row(timings, epochs, at_once))
            show(timings.rows[-1])

    def write_changes(*arguments: Any) -> None:
        started = time.monotonic()
        write(*arguments)
        timings.written.append((time.monotonic(), time.monotonic() - started))

    replacements: dict[str, Callable[..., Any]] = {
        "next_attempt": timed(plain["next_attempt"], timings.suggest_s),
        "on_report": timed(plain["on_report"], timings.epoch_s, timings.epoch_cpu_s),
        "on_trial_end": on_trial_end,
    }
    StudyRunWriter.write_changes = write_changes  # type: ignore[method-assign, assignment]
    for name, call in replacements.items():
        setattr(TrialEventHandler, name, call)
    try:
        yield
    finally:
        StudyRunWriter.write_changes = write  # type: ignore[method-assign]
        for name, call in plain.items():
            setattr(TrialEventHandler, name, call)


def take_row(timings: Timings, epochs: int, at_once: int) -> Row:
    """Compute the medians of the last `RECENT` trials; excludes the last `at_once` ends from the pace."""
    driver = psutil.Process()
    workers = [mib for process in driver.children(recursive=True) if (mib := worker_mib(process))]
    moments = timings.moments[: max(2, len(timings.moments) - at_once)][-RECENT:]
    recent = sum(seconds for moment, seconds in timings.written if moments[0] < moment <= moments[-1])
    return Row(
        len(timings.moments),
        driver.memory_info().rss / 2**20,
        median(workers or [0]),
        1000 * median(timings.epoch_s[-RECENT * epochs :]),
        1000 * median(timings.epoch_cpu_s[-RECENT * epochs :]),
        1000 * recent / (epochs * max(1, len(moments) - 1)),
        median(timings.suggest_s[-RECENT:]),
        1000 * median(timings.end_s[-RECENT:]),
        (moments[-1] - moments[0]) / max(1, len(moments) - 1),
    )


def worker_mib(process: psutil.Process) -> float:
    """Return the memory of a worker process in MiB; 0 if the process is no worker or has ended."""
    try:
        is_worker = "ray::" in " ".join(process.cmdline()[:1])
        return float(process.memory_full_info().pss / 2**20) if is_worker else 0.0
    except psutil.Error:
        return 0.0


def search_once(
    folder: Path, *, trials: int, at_once: int, epochs: int, epoch_s: float, sampler: str, spread_s: float = 0.0
) -> float:
    """Run `search.run` on `at_once` simulated GPUs with replayed trials; returns its seconds.

    Args:
        folder: the storage.
        trials: the budget.
        at_once: number of concurrent trials.
        epochs: of a trial.
        epoch_s: duration of an epoch in seconds.
        sampler: value of --sampler.
        spread_s: seconds over which the first trials start.

    Raises:
        SystemExit: the search failed.
    """
    import search.execution.ray_tune
    from scripts.bench.replay import Gate, replay

    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(at_once)))
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": at_once, "GPU": at_once})
    gate = folder / f"gate-{trials}"
    gate.mkdir()
    trial = replay(epoch_s, Gate(str(gate), min(at_once, trials), spread_s))
    search.execution.ray_tune.run_trial = trial  # type: ignore[assignment]
    return run_command(folder, trials, epochs, sampler)


def run_command(folder: Path, trials: int, epochs: int, sampler: str) -> float:
    """Run or continue the study `load` of a storage with `search.run`; returns its seconds.

    Raises:
        SystemExit: the search failed.
    """
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
    """Return the last five lines of a text file."""
    return "\n".join(path.read_text().splitlines()[-5:])


def time_no_op(trials: int, at_once: int) -> float:
    """Return the seconds between the ends of Ray Tune's no-op trials, after all workers have started."""
    import ray
    from ray import tune

    from scripts.bench.replay import Gate, no_op

    moments: list[float] = []

    class RecordEnds(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            moments.append(time.monotonic())

    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as gate:
            tune.Tuner(
                tune.with_resources(no_op(Gate(gate, min(at_once, trials))), {"cpu": 1}),
                tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_once, reuse_actors=True),
                run_config=tune.RunConfig(name="no-op", storage_path=scratch, verbose=0, callbacks=[RecordEnds()]),
            ).fit()
    finally:
        ray.shutdown()
    moments = moments[: max(2, len(moments) - at_once)][-RECENT:]
    return (moments[-1] - moments[0]) / max(1, len(moments) - 1)
