"""What the search itself costs: python -m scripts.bench.orchestration [--trials 1000] [--at-once 64] [--only load]

Runs `search.run` as it is, on simulated cores and GPUs, with workers that replay a formula instead of training.  Ends
with 1 if a goal is missed.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from scripts.bench.runs import Row, Watches, search_once, time_no_op, watching
from search.audit.trials import audit
from search.cluster.ray_cluster import ray_environment
from search.ledger.catalog import open_ledger
from search.study.location import find_location
from search.tracking.sync import sync

EPOCH_MS, ASK_S, GROWTH_MIB, EFFICIENCY = 10, 1, 0.2, 0.95
"""The goals: median of ledger and tracking per epoch, ask, driver memory per trial, efficiency."""


@dataclass(frozen=True)
class Setup:
    """How much is run."""

    trials: int
    at_once: int
    epochs: int
    sampler: str
    rows_at: tuple[int, ...]
    sizes: tuple[int, ...]
    length_s: float
    judged: bool


def load(setup: Setup, folder: Path) -> list[str]:
    """Run the replayed study and Ray Tune's own no-op trials; prints the table, returns the goals that are missed."""
    screen, watches = sys.stdout, Watches()
    print("| trials ended | driver | a worker | driver, an epoch | MLflow's thread | ask | end | time a trial |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    show = partial(print_row, screen)
    with watching(watches, setup.rows_at, setup.epochs, setup.at_once, show):
        seconds = search_once(
            folder, trials=setup.trials, at_once=setup.at_once, epochs=setup.epochs, epoch_s=0.0, sampler=setup.sampler
        )
    print(f"the whole command: {seconds:.0f} s; slowest ask {max(watches.ask_s):.2f} s")
    own, faults = time_no_op(min(setup.trials, 300), setup.at_once), audit_books(folder, setup.trials)
    print(f"time a trial: {watches.rows[-1].trial_s:.3f} s, {own:.3f} s for a no-op trial of Ray Tune", flush=True)
    return faults + (judge(watches.rows) if setup.judged else [])


def print_row(screen: TextIO, row: Row) -> None:
    """Show a row of the table."""
    memory = f"{row.driver_mib:.0f} MiB | {row.worker_mib:.0f} MiB"
    epoch = f"{row.epoch_ms:.1f} ms | {row.tracking_ms:.1f} ms"
    others = f"{row.ask_s:.3f} s | {row.end_ms:.1f} ms | {row.trial_s:.3f} s"
    print(f"| {row.ended} | {memory} | {epoch} | {others} |", file=screen, flush=True)


def judge(rows: list[Row]) -> list[str]:
    """The goals that the figures miss, in words."""
    first, last = rows[0], rows[-1]
    growth = (last.driver_mib - first.driver_mib) / max(1, last.ended - first.ended)
    print(f"driver memory: {1024 * growth:.0f} KiB a trial from {first.ended} to {last.ended}")
    goals = {
        f"{last.epoch_ms:.1f} ms an epoch, must be under {EPOCH_MS}": last.epoch_ms < EPOCH_MS,
        f"ask takes {last.ask_s:.2f} s, must be under {ASK_S}": last.ask_s < ASK_S,
        f"driver memory grows by {growth:.2f} MiB a trial, must be under {GROWTH_MIB}": growth < GROWTH_MIB,
    }
    return [text for text, reached in goals.items() if not reached]


def audit_books(folder: Path, trials: int) -> list[str]:
    """Send to MLflow what it lacks, then audit the study; returns what is broken."""
    started = time.monotonic()
    sync(find_location(folder, "load"))
    print(f"MLflow was brought up to date in {time.monotonic() - started:.0f} s after the end")
    # Without training there are no weights: the one complaint that must come.
    faults = [fault for fault in audit(folder, "load", trials=trials) if "best trial has no checkpoint" not in fault]
    print(
        f"none of {trials} trials lost, the audit is clean" if not faults else f"the audit finds {len(faults)} faults"
    )
    return faults


def scaling(setup: Setup, folder: Path) -> list[str]:
    """Run trials of fixed length on more and more simulated GPUs; returns the goals that are missed."""
    print("with --sampler random, whose asks cost nothing:")
    print("| GPUs | trials | from a trial's end to the next start on its GPU | efficiency |\n|---|---|---|---|")
    efficiency = [share_used(setup, folder / str(size), size, setup.length_s) for size in setup.sizes][-1]
    size = setup.sizes[-1]
    print("the same, all GPUs ending their trials at the same moment:")
    share_used(setup, folder / "together", size, spread_s=0.0)
    missed = setup.judged and efficiency < EFFICIENCY
    return [f"efficiency {efficiency:.3f} on {size} GPUs, must be {EFFICIENCY}"] if missed else []


def share_used(setup: Setup, location: Path, size: int, spread_s: float) -> float:
    """Run three trials a GPU, print the row of the table, and return the share of the GPUs' time that they use."""
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


def busy_spans(folder: Path) -> list[tuple[float, float]]:
    """When each trial's worker was busy, unix seconds, in the order of their beginnings."""
    records = open_ledger(find_location(folder, "load")).trials()
    return sorted((r.epochs[0].wall_time - r.epochs[0].seconds, r.epochs[-1].wall_time) for r in records)


def steady_share(spans: list[tuple[float, float]], size: int) -> float:
    """Share of the GPUs' time that trials use, from when every GPU has had one until no more begin.

    The start of the processes is left out: here two cores start 64 of them, on a cluster every node starts its own.
    As there, the first trials begin one after the other.
    """
    begin, end = spans[size - 1][0], spans[-1][0]
    used = sum(max(0.0, min(b, end) - max(a, begin)) for a, b in spans)
    return used / (size * (end - begin))


def machine() -> str:
    """Processor, cores and how busy they are, and versions, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{package} {version(package)}" for package in ("ray", "optuna", "mlflow"))
    return f"{os.cpu_count()} cores of {name}, {os.getloadavg()[0]:.1f} of them busy before the start; {versions}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="replayed trials (default: 1000)")
    parser.add_argument("--at-once", type=int, default=64, metavar="K", help="most trials at once (default: 64)")
    parser.add_argument("--sampler", default="auto", metavar="NAME", help="auto, gp, tpe or random (default: auto)")
    parser.add_argument("--only", choices=("load", "scaling"), help="one part only")
    parser.add_argument("--quick", action="store_true", help="a few trials; judges the books and no times")
    return parser.parse_args(arguments)


def setup_of(options: argparse.Namespace) -> Setup:
    """How much the options ask for."""
    if options.quick:
        return Setup(8, 2, 2, options.sampler, (8,), (1, 2), 1.0, judged=False)
    trials, sizes = options.trials, tuple(2**n for n in range(options.at_once.bit_length()))
    rows_at = tuple(round(trials * share) for share in (0.1, 0.25, 0.5, 0.75, 1))
    return Setup(trials, options.at_once, 5, options.sampler, rows_at, sizes, 20.0, judged=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and the goals that are missed; returns 1 if there are any."""
    options = parse(arguments)
    os.environ.update(ray_environment())
    setup, missed = setup_of(options), []
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(
        prefix="fg-", dir="/tmp"
    ) as folder:  # a socket's path may have 107 characters only
        os.environ["RAY_TMPDIR"] = folder
        for part in (load, scaling):
            if options.only in (None, part.__name__):
                location = Path(folder, part.__name__)
                location.mkdir()
                missed += part(setup, location)
    print("\n".join(f"missed: {text}" for text in missed) if missed else "every goal is reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
