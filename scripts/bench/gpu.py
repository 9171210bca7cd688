"""Measure the targets of the GPU path on one GPU: python -m scripts.bench.gpu [--minutes 8] [--only start search]

Each part runs in a process of its own; what it measured until its limit or the end of the time counts.  The targets of
parts that failed or were not begun are not measured.  Eight minutes are enough for the first five parts, by the times
of the first runs; --only selects others.  --out writes machine and figures after each part.  --dry tries the script
on the CPU with tiny frames, and judges nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgseg.config.loading import Layer, build, read_layer
from fgseg.data import load_splits
from scripts.bench.gpu_parts import DRY_PARTS, PARTS, ROOT, Bench, bench_of, search_settings
from scripts.bench.gpu_targets import SEARCH_SIZE, TARGETS
from scripts.bench.jobs import Setup, prepare_training
from scripts.bench.machine import machine_with_gpu
from scripts.bench.train import PROCESSES, write_scenes

INTERRUPT_S = 15.0
"""Seconds that an interrupted part may take to end before it is killed."""
MARK = "figure"
"""Begins a line of a part's output that has a name and a number."""

PREPARED = ("step-2", "step-8")
"""Parts that `prepare_parts` prepares by default: those for which the time is enough."""
COMPILERS = 2
"""Steps that are compiled at once: four took 150 s on 16 cores, one alone 64 s."""


def prepare_parts(bench: Bench, names: Sequence[str], limit_s: float) -> None:
    """Compile the training steps that parts will need, and draw the frames of the search beside them.

    The results are kept in the folder of the benchmark; the parts measure one after the other.
    """
    setups = [replace(bench.setup, batch=int(name.split("-")[1])) for name in names if name.startswith("step-")]
    setups += [bench.setup for name in names if name in {"evaluation", "start", "sharing", "kernels"}]
    setups += [replace(bench.setup, size=SEARCH_SIZE) for name in names if name == "search"]
    end = time.monotonic() + limit_s
    with ThreadPoolExecutor(1) as drawing, ThreadPoolExecutor(COMPILERS) as compiling:
        if "search" in names:
            drawing.submit(run_until, end, draw_frames, search_settings(bench))
        for setup in dict.fromkeys(setups):
            compiling.submit(run_until, end, compile_step, setup)


def run_until(end: float, job: Callable[[Any], object], argument: object) -> None:
    """Run a job in a process of its own, and kill it at `end` on the monotonic clock."""
    process = PROCESSES.Process(target=job, args=(argument,), daemon=False)
    process.start()
    process.join(max(0.0, end - time.monotonic()))
    if process.exitcode != 0:
        print(f"preparing failed or was cut off, exit code {process.exitcode}", flush=True)
        process.kill()


def compile_step(setup: Setup) -> None:
    """Compile the training step of a setup, and print how long it took."""
    state, _ = prepare_training(setup)
    height, width = setup.size
    print(f"compiling a batch of {setup.batch} at {height}x{width}: {state.step.compile_s or 0:.0f} s", flush=True)


def draw_frames(settings: dict[str, Any]) -> None:
    """Draw the frames of a run of `search.run` with these settings."""
    run = build([read_layer(ROOT / "configs" / "quickstart.yaml", skip="search"), Layer("benchmark", settings)])
    load_splits(run.data, ("train", "val"))


def show(name: str, figures: Iterator[tuple[str, float]]) -> None:
    """Print the figures of a part as they come."""
    started = time.monotonic()
    for figure, value in figures:
        print(f"{MARK}\t{figure}\t{value:.6g}", flush=True)
    print(f"{name} took {time.monotonic() - started:.0f} s", flush=True)


def collect(command: Sequence[str], limit_s: float) -> dict[str, float]:
    """Run a part as a command, and return the figures that it printed; after `limit_s` it is interrupted."""
    figures: dict[str, float] = {}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    ends = {signal.SIGINT: limit_s, signal.SIGKILL: limit_s + INTERRUPT_S}  # the first lets it end what it started
    timers = [threading.Timer(after, os.killpg, (process.pid, number)) for number, after in ends.items()]
    for timer in timers:
        timer.start()
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(f"{MARK}\t"):
                _, name, value = line.rstrip("\n").split("\t")
                figures[name] = float(value)
        for timer in timers:
            timer.cancel()
    if process.returncode:
        print(f"failed or cut off, exit code {process.returncode}: {' '.join(command)}", flush=True)
    return figures


def measure_parts(
    names: Sequence[str], folder: Path, minutes: float, seconds: float, out: Path | None = None
) -> dict[str, float]:
    """Run the parts one after the other, each up to its limit, until the time is over; returns all figures.

    Args:
        names: of the parts.
        folder: of the benchmark.
        minutes: of all parts.
        seconds: of a measurement.
        out: JSON file for machine and figures, written after each part.
    """
    end, figures = time.monotonic() + 60 * minutes, {}
    for name in names:
        if time.monotonic() > end:
            print(f"{name}: not begun, the time is over", flush=True)
            continue
        command = [sys.executable, "-m", "scripts.bench.gpu", "--part", name, str(folder), "--seconds", str(seconds)]
        figures |= collect(command, min(PARTS[name].limit_s, end - time.monotonic()))
        if out is not None:
            out.write_text(json.dumps({"machine": machine_with_gpu(), "figures": figures}, indent=1), encoding="utf-8")
    return figures


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, metavar="N", help="time of all parts (default: 8)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="duration of a measurement (default: 5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file for machine and figures")
    parser.add_argument("--dry", action="store_true", help="try the script on the CPU")
    parser.add_argument("--part", nargs=2, metavar=("PART", "DIR"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table of the targets."""
    options = parse(arguments)
    if options.part:
        name, folder = options.part
        return show(name, PARTS[name].measure(bench_of(Path(folder), dry=False, seconds=options.seconds)))
    print(machine_with_gpu(), flush=True)
    begun = time.monotonic()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fg-", dir="/tmp") as folder:  # a socket's path may have 107 characters
        bench = bench_of(Path(folder), options.dry, 0.0 if options.dry else options.seconds)
        write_scenes(bench.setup.root, bench.setup.frames, 2 * bench.setup.size[0], 2 * bench.setup.size[1])
        if options.dry:
            for name in options.only or DRY_PARTS:
                show(name, PARTS[name].measure(bench))
        else:
            started = time.monotonic()
            prepare_parts(bench, options.only or PREPARED, 60 * options.minutes / 2)
            print(f"preparing took {time.monotonic() - started:.0f} s", flush=True)
            minutes = options.minutes - (time.monotonic() - begun) / 60
            figures = measure_parts(options.only or list(PARTS), Path(folder), minutes, options.seconds, options.out)
    print("| target | goal | measured | |\n|---|---|---|---|")
    print("\n".join(target.row(figures) for target in TARGETS))


if __name__ == "__main__":
    main()
