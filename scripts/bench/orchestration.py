"""Measure the overhead of a search: python -m scripts.bench.orchestration [--trials 1000] [--at-once 64] [--only load]

Runs `search.run` unchanged on simulated cores and GPUs, with workers that replay a formula instead of training;
the part `driver` runs it without Ray and workers, which need the same cores.  Exits with 1 if a goal is missed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from scripts.arguments import positive
from scripts.bench.driver import without_ray
from scripts.bench.machine import machine_of_search
from scripts.bench.runs import Row, Timings, run_command, search_once, time_no_op, watching
from search.audit.trials import audit
from search.cluster.ray_cluster import set_ray_environment
from search.ledger.catalog import open_ledger
from search.study.location import find_location
from search.tracking.sync import sync

EPOCH_MS, END_MS, SUGGEST_S, GROWTH_MIB, EFFICIENCY = 5, 10, 0.05, 0.2, 0.95
"""Goals: median time of the driver per epoch, per end of a trial and per suggestion without the Gaussian process, in
trials whose epochs take time; driver memory per trial; share of the GPUs' time."""


@dataclass(frozen=True)
class Setup:
    """Size of the benchmark."""

    trials: int
    at_once: int
    epochs: int
    sampler: str
    rows_at: tuple[int, ...]
    """Numbers of ended trials at which a row is printed."""
    sizes: tuple[int, ...]
    """Numbers of simulated GPUs of `scaling`."""
    length_s: float
    """Seconds of a trial of `scaling`."""
    paced_s: float
    """Seconds of an epoch of the trials that end `load`."""
    check_goals: bool


def load(setup: Setup, folder: Path) -> list[str]:
    """Run the replayed study, and no-op trials of Ray Tune; prints the tables, returns the missed goals.

    Epochs take no time, which keeps all cores busy, except in the last trials of the study.
    """
    rows = run_load(setup, folder, setup.trials, setup.rows_at, 0.0)
    own = time_no_op(min(setup.trials, 300), setup.at_once)
    print(f"time a trial: {rows[-1].trial_s:.3f} s, {own:.3f} s for a no-op trial of Ray Tune", flush=True)
    print(f"the same study goes on with {setup.at_once} trials at once, whose epochs take {setup.paced_s:g} s:")
    trials = setup.trials + 3 * setup.at_once
    # The row is of the second of three rounds: in the first the workers start, and no trial follows on the third.
    paced = run_load(setup, folder, trials, (2 * setup.at_once,), setup.paced_s)
    faults = sync_and_audit(folder, trials)
    return faults + ([*missed_times(paced[-1]), *missed_growth(rows)] if setup.check_goals else [])


def run_load(setup: Setup, folder: Path, trials: int, rows_at: tuple[int, ...], epoch_s: float) -> list[Row]:
    """Continue the study `load` to a number of trials; print a row at each number of ended trials in `rows_at`."""
    search = partial(search_once, folder, trials=trials, at_once=setup.at_once, epochs=setup.epochs)
    spread_s = setup.epochs * epoch_s
    return watched(setup, rows_at, partial(search, epoch_s=epoch_s, sampler=setup.sampler, spread_s=spread_s))


def watched(setup: Setup, rows_at: tuple[int, ...], search: Callable[[], float]) -> list[Row]:
    """Run a search, which returns its seconds; print a row at each number of ended trials in `rows_at`."""
    screen, timings = sys.stdout, Timings()
    names = ("driver", "a worker", "driver, an epoch", "processor time", "MLflow's thread", "suggest", "end")
    print(f"| trials ended | {' | '.join(names)} | time a trial |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with watching(timings, rows_at, setup.epochs, setup.at_once, partial(print_row, screen)):
        seconds = search()
    print(f"the whole command: {seconds:.0f} s; slowest suggestion {max(timings.suggest_s):.2f} s")
    return timings.rows


def driver(setup: Setup, folder: Path) -> list[str]:
    """Run the same study without Ray and workers; prints the table, returns the missed goals.

    The sampler is TPE, which `auto` is from 250 finished trials on.  Epochs of the first trials take no time.
    """
    with without_ray(1, 0.0):
        run_command(folder, setup.trials, setup.epochs, "tpe")
    sync(find_location(folder, "load"))
    print(f"the driver alone, with {setup.at_once} trials at once, whose epochs take {setup.paced_s:g} s:")
    with without_ray(setup.at_once, setup.paced_s):
        trials = setup.trials + 3 * setup.at_once
        search = partial(run_command, folder, trials, setup.epochs, "tpe")
        (row,) = watched(setup, (2 * setup.at_once,), search)
    return [*sync_and_audit(folder, trials), *(missed_times(row) if setup.check_goals else [])]


def print_row(screen: TextIO, row: Row) -> None:
    """Print a row of the table."""
    memory = f"{row.driver_mib:.0f} MiB | {row.worker_mib:.0f} MiB"
    epoch = f"{row.epoch_ms:.1f} ms | {row.epoch_cpu_ms:.1f} ms | {row.tracking_ms:.1f} ms"
    others = f"{row.suggest_s:.3f} s | {row.end_ms:.1f} ms | {row.trial_s:.3f} s"
    print(f"| {row.ended} | {memory} | {epoch} | {others} |", file=screen, flush=True)


def missed_times(row: Row) -> list[str]:
    """Return one line per time of the driver that misses its goal, in trials whose epochs take time."""
    goals = {
        f"{row.epoch_ms:.1f} ms an epoch, must be under {EPOCH_MS}": row.epoch_ms < EPOCH_MS,
        f"{row.end_ms:.1f} ms an end of a trial, must be under {END_MS}": row.end_ms < END_MS,
        f"a suggestion takes {row.suggest_s:.3f} s, must be under {SUGGEST_S}": row.suggest_s < SUGGEST_S,
    }
    return [text for text, reached in goals.items() if not reached]


def missed_growth(rows: list[Row]) -> list[str]:
    """Return a line if the driver's memory grows by more than its goal between the first and the last row."""
    first, last = rows[0], rows[-1]
    growth = (last.driver_mib - first.driver_mib) / max(1, last.ended - first.ended)
    print(f"driver memory: {1024 * growth:.0f} KiB a trial from {first.ended} to {last.ended}")
    text = f"driver memory grows by {growth:.2f} MiB a trial, must be under {GROWTH_MIB}"
    return [] if growth < GROWTH_MIB else [text]


def sync_and_audit(folder: Path, trials: int) -> list[str]:
    """Send missing data to MLflow, then audit the study; returns one line per fault."""
    started = time.monotonic()
    sync(find_location(folder, "load"))
    print(f"MLflow was brought up to date in {time.monotonic() - started:.0f} s after the end")
    # This fault is expected, since nothing was trained.
    faults = [fault for fault in audit(folder, "load", trials=trials) if "best trial has no checkpoint" not in fault]
    print(
        f"none of {trials} trials lost, the audit is clean" if not faults else f"the audit finds {len(faults)} faults"
    )
    return faults


def scaling(setup: Setup, folder: Path) -> list[str]:
    """Run trials of fixed length on growing numbers of simulated GPUs; returns the missed goals."""
    print("with --sampler random, whose suggestions take no time:")
    print("| GPUs | trials | from a trial's end to the next start on its GPU | efficiency |\n|---|---|---|---|")
    efficiency = [share_used(setup, folder / str(size), size, setup.length_s) for size in setup.sizes][-1]
    size = setup.sizes[-1]
    print("the same, all GPUs ending their trials at the same moment:")
    share_used(setup, folder / "together", size, spread_s=0.0)
    missed = setup.check_goals and efficiency < EFFICIENCY
    return [f"efficiency {efficiency:.3f} on {size} GPUs, must be {EFFICIENCY}"] if missed else []


def share_used(setup: Setup, location: Path, size: int, spread_s: float) -> float:
    """Run three trials per GPU and print the row; returns the share of the GPUs' time that they use, in [0, 1]."""
    location.mkdir()
    search_once(
        location,
        trials=3 * size,
        at_once=size,
        epochs=2,
        epoch_s=setup.length_s / 2,
        sampler="random",
        spread_s=spread_s,
    )
    used = steady_share(busy_spans(location), size)
    print(f"| {size} | {3 * size} | {setup.length_s * (1 / used - 1):.2f} s | {used:.3f} |", flush=True)
    return used


def busy_spans(folder: Path, study: str = "load") -> list[tuple[float, float]]:
    """Return start and end of each trial of a study in seconds since 1970, sorted by start."""
    records = open_ledger(find_location(folder, study)).trials()
    return sorted((r.epochs[0].wall_time - r.epochs[0].seconds, r.epochs[-1].wall_time) for r in records)


def steady_share(spans: list[tuple[float, float]], size: int) -> float:
    """Return the share of the GPUs' time that trials use, from the first trial on every GPU to the last start.

    Excludes the start of the processes, which takes longer on one machine than on the nodes of a cluster.

    Args:
        spans: start and end of each trial in seconds, sorted by start.
        size: number of GPUs.
    """
    begin, end = spans[size - 1][0], spans[-1][0]
    used = sum(max(0.0, min(b, end) - max(a, begin)) for a, b in spans)
    return used / (size * (end - begin))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=positive, default=1000, metavar="N", help="replayed trials (default: 1000)")
    parser.add_argument("--at-once", type=positive, default=64, metavar="K", help="most trials at once (default: 64)")
    parser.add_argument("--sampler", default="auto", metavar="NAME", help="auto, gp, tpe or random (default: auto)")
    parser.add_argument("--only", choices=("load", "driver", "scaling"), help="one part only")
    parser.add_argument("--quick", action="store_true", help="a few trials; checks the ledger and MLflow, but no goals")
    return parser.parse_args(arguments)


def setup_of(options: argparse.Namespace) -> Setup:
    """Return the size of the benchmark for the options."""
    if options.quick:
        return Setup(8, 2, 2, options.sampler, (8,), (1, 2), 1.0, 0.2, check_goals=False)
    trials, sizes = options.trials, tuple(2**n for n in range(options.at_once.bit_length()))
    rows_at = tuple(round(trials * share) for share in (0.1, 0.25, 0.5, 0.75, 1))
    return Setup(trials, options.at_once, 5, options.sampler, rows_at, sizes, 20.0, 6.0, check_goals=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and the missed goals; returns 1 if there are any, else 0."""
    options = parse(arguments)
    set_ray_environment()
    setup, missed = setup_of(options), []
    print(machine_of_search(), flush=True)
    with tempfile.TemporaryDirectory(
        prefix="fg-", dir="/tmp"
    ) as folder:  # Linux limits the path of a socket to 107 characters
        os.environ["RAY_TMPDIR"] = folder
        for part in (load, driver, scaling):
            if options.only in (None, part.__name__):
                location = Path(folder, part.__name__)
                location.mkdir()
                missed += part(setup, location)
    print("\n".join(f"missed: {text}" for text in missed) if missed else "all goals are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
