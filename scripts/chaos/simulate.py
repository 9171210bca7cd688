"""Run schedules of faults against a simulated world: `python -m scripts.chaos.simulate --schedules N --seed S`.

The product runs as it is: controller, event handler, ledger, sampling, tracker, export; simulated are the clock, Ray,
the disk, MLflow and the hosts.  One seed is one schedule of 3 to 10 faults.  A schedule that violates an invariant is
reduced to its shortest form and printed.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context

from scripts.arguments import positive
from scripts.chaos.simulated_faults import Fault, schedule
from scripts.chaos.simulated_study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a schedule has violated an invariant."""
    options = parse(arguments)
    failed = 0
    for seed, violations in run_all(range(options.seed, options.seed + options.schedules), options.processes):
        if violations and options.first:
            print(f"seed {seed}: {'; '.join(violations)}")
            return 1
        if violations:
            failed += 1
            print_failure(seed, violations)
    print(f"{options.schedules} schedules, {failed} violations")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos.simulate", description=__doc__)
    parser.add_argument("--schedules", type=positive, default=1000, help="number of schedules (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first schedule (default: 0)")
    parser.add_argument(
        "--processes", type=positive, default=os.cpu_count(), help="at a time (default: one for each core)"
    )
    parser.add_argument("--first", action="store_true", help="end at the first violation, and do not reduce it")
    return parser.parse_args(arguments)


def run_all(seeds: Sequence[int], processes: int) -> Iterator[tuple[int, list[str]]]:
    """Run the schedules of these seeds; yields each seed with its violations, in any order."""
    if processes == 1:
        yield from map(run_seed, seeds)
        return
    with get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=10)


def run_seed(seed: int) -> tuple[int, list[str]]:
    """Run the schedule of a seed; returns the seed and the violations."""
    return seed, violations_of(seed, schedule(seed))


def violations_of(seed: int, faults: Sequence[Fault]) -> list[str]:
    """Run a study under these faults; returns the violations, of which an exception is one."""
    try:
        return Study(seed).run(faults)
    except Exception:
        return [traceback.format_exc()]


def print_failure(seed: int, violations: Sequence[str]) -> None:
    """Print the violations of a seed, and its shortest schedule as a test would give it to `Study.run`."""
    shortest = shorten(schedule(seed), lambda faults: bool(violations_of(seed, faults)))
    print(f"seed {seed}: {'; '.join(violations)}")
    print(f"    Study({seed}).run([{', '.join(map(repr, shortest))}])", flush=True)


def shorten(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> list[Fault]:
    """Return a part of the faults that still fails, of which no fault can be left out (delta debugging)."""
    shortest, size = list(faults), len(faults) // 2
    while size:
        parts = [shortest[:first] + shortest[first + size :] for first in range(0, len(shortest), size)]
        smaller = next((part for part in parts if fails(part)), None)
        if smaller is None:
            size //= 2
        else:
            shortest, size = smaller, min(size, max(1, len(smaller) // 2))
    return shortest


if __name__ == "__main__":
    sys.exit(main())
