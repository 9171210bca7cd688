"""Measure the targets of the GPU path on one GPU: python -m scripts.bench.gpu [--minutes 8] [--only start search]

Each part runs in a process of its own; what it measured until the time is over counts.  The targets of parts that
failed or were not begun are not measured.  --dry tries the script on the CPU with tiny frames, and judges nothing.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fgseg.config.loading import Layer, build, read_layer
from fgseg.data import load_splits
from scripts.bench import equality
from scripts.bench.gpu_targets import EPOCHS, FRAMES, SEARCH_SIZE, TARGETS
from scripts.bench.jobs import EVALUATED, JOBS, Setup, our_training
from scripts.bench.machine import machine_with_gpu
from scripts.bench.source_recipe import synchronized_time
from scripts.bench.train import CPU_SIZE, PROCESSES, Figures, Row, alternate, measure, share, write_scenes

ROOT = Path(__file__).parents[2]
SCENES, TRIALS, SEEDS = 24, 4, 3
"""PNG files of the source's recipe, trials of the search, and trainings of each side of the comparison of mIoU."""
DRY_SCENES: dict[str, Any] = {"data.height": 64, "data.width": 128, "data.val": 2, "data.test": 0}
"""Settings of the scenes of a dry comparison of mIoU."""
INTERRUPT_S = 15.0
"""Seconds that an interrupted part may take to end before it is killed."""
MARK = "figure"
"""Begins a line of a part's output that has a name and a number."""

Parts = dict[str, Callable[["Bench"], Iterator[tuple[str, float]]]]


@dataclass(frozen=True)
class Bench:
    """Setup of the measurements, shared by the parts.  Where `dry` is set, the script is only tried out on the CPU."""

    setup: Setup
    dry: bool

    def sides(self, job: str, setup: Setup) -> Figures:
        """Measure a job beside the source's in this process, which takes less time than starting another."""
        return alternate({side: prepare(setup) for side, prepare in JOBS[job].items()}, setup.seconds)


def gpu_tests(bench: Bench) -> Iterator[tuple[str, float]]:
    """Run the tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "ignore", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    if done.returncode not in {0, 1} or not re.search(r"\d+ (passed|failed)", done.stdout):
        raise RuntimeError(f"no test has run; pytest ended with {done.returncode}")
    yield "failed tests", sum(int(count) for count in re.findall(r"(\d+) (?:failed|error)", done.stdout))


def step(bench: Bench, batch: int) -> Iterator[tuple[str, float]]:
    """Train bas_cp with one batch size and with the source's recipe; in a dry run only the step, without files."""
    setup = replace(bench.setup, batch=batch)
    figures = bench.sides("step", setup) if bench.dry else in_processes("training", setup)
    yield from beside_source(f"batch of {batch}", figures, higher_is_better=not bench.dry)


def losses(bench: Bench) -> Iterator[tuple[str, float]]:
    """Time both losses beside the source's."""
    for job in ("bas loss", "slc loss"):
        yield from beside_source(job, bench.sides(job, bench.setup), higher_is_better=False)


def cpu(bench: Bench) -> Iterator[tuple[str, float]]:
    """Time losses and step on two CPU cores beside the source's."""
    setup = replace(bench.setup, size=CPU_SIZE, device="cpu", threads=min(2, os.cpu_count() or 1))
    for job in ("bas loss", "slc loss", "step"):
        yield from beside_source(f"CPU, {job}", in_processes(job, setup), higher_is_better=False)


def in_processes(job: str, setup: Setup) -> Figures:
    """Measure a job beside the source's, each in a process of its own: both would use one state of Accelerate."""
    return measure(Row(job, job, setup, "", 0), setup.seconds)


def beside_source(name: str, figures: Figures, higher_is_better: bool) -> Iterator[tuple[str, float]]:
    """Yield the figures of both sides, and how many times as good as the source's ours is."""
    assert figures.source is not None
    yield f"{name}: ours", figures.ours
    yield f"{name}: source", figures.source
    ratio = figures.ours / figures.source
    yield f"{name}: ratio", ratio if higher_is_better else 1 / ratio


def evaluation(bench: Bench) -> Iterator[tuple[str, float]]:
    """Time the evaluation of 250 frames."""
    yield "evaluation", bench.sides("evaluation", bench.setup).ours


def start(bench: Bench) -> Iterator[tuple[str, float]]:
    """Time the start of three trainings of one process, without Ray: from no model to the end of the fifth step."""
    for trial in (1, 2, 3):
        started = synchronized_time()
        our_training(bench.setup)
        yield f"start of trial {trial}", synchronized_time() - started


def miou(bench: Bench) -> Iterator[tuple[str, float]]:
    """Compare the mIoU of trainings by the plain and by the fast step, with equal seeds."""
    frames, epochs, seeds, others = (2, 1, 2, DRY_SCENES) if bench.dry else (208, 5, SEEDS, {})
    steps = {"plain": "off", "fast": "auto" if bench.dry else "on"}  # on the CPU both are the plain step
    scores: dict[str, list[float]] = {side: [] for side in steps}
    for seed in range(seeds):
        for side, setting in steps.items():
            changes = others | {"train.compile": setting}
            task = equality.Task(side, seed, str(bench.setup.cache), frames, epochs, 5e-3, changes)
            scores[side].append(equality.ours(task))
            yield f"mIoU, {side}, seed {seed}", scores[side][-1]
    difference, error = equality.difference(scores)
    yield "mIoU, fast less plain", difference
    yield "mIoU, its standard error", error
    yield "mIoU: difference", abs(difference) / error if difference else 0.0


def sharing(bench: Bench) -> Iterator[tuple[str, float]]:
    """Train 1, 2 and 4 models at once on the GPU, without and with NVIDIA MPS."""
    from search.cluster.mps import mps_daemon
    from search.study.config import SearchConfig
    from search.study.resources import MPS_PIPES

    row = Row("", "training", bench.setup, "images/s", 0)
    os.environ.pop(MPS_PIPES, None)  # of a daemon that the user has started
    for count in (1, 2, 4):
        yield f"{count} at once: images/s", share(row, count)
    with mps_daemon(SearchConfig(gpus_per_trial=0.5)) as variables:
        if not variables:
            raise RuntimeError("NVIDIA MPS is not installed or does not start")
        os.environ.update(variables)
        for count in (1, 2, 4):
            yield f"{count} at once with MPS: images/s", share(row, count)


def search(bench: Bench) -> Iterator[tuple[str, float]]:
    """Compare a search with bare training, one trial at a time; the first trial, which compiles, is left out."""
    from scripts.bench.orchestration import busy_spans
    from search.cluster.ray_cluster import ray_environment
    from search.run import main as run_search

    os.environ.update(ray_environment())  # before the import of Ray, which reads them
    storage = bench.setup.cache / "runs"
    sets = [f"{name}={value}" for name, value in search_settings(bench).items()]
    command = ["--space", "bas_cp", "--study", "bench", "--storage", str(storage), "--trials", str(TRIALS)]
    command += ["--sampler", "random", "--max-concurrent", "1", "--gpus-per-trial", "1"]
    code = run_search([*command, *(part for text in sets for part in ("--set", text))])
    if code:
        raise RuntimeError(f"search.run ended with {code}")
    _, *spans = busy_spans(storage, "bench")
    trial_s = statistics.median(b[1] - a[1] for a, b in pairwise(spans))
    yield "trials per hour", 3600 / trial_s
    bare_s = EPOCHS * FRAMES / our_training(replace(bench.setup, size=SEARCH_SIZE))()
    yield "search: to bare training", bare_s / trial_s


def search_settings(bench: Bench) -> dict[str, Any]:
    """Return the settings of the trials of the search, by dotted name."""
    data = {"data.height": SEARCH_SIZE[0], "data.width": SEARCH_SIZE[1], "data.train": FRAMES}
    model = {"model.name": bench.setup.model, "train.epochs": EPOCHS, "train.compile": "on"}
    return data | {"data.cache": str(bench.setup.cache)} | model


PARTS: Parts = {
    "tests": gpu_tests,
    "step-2": lambda bench: step(bench, 2),
    "losses": losses,
    "evaluation": evaluation,
    "start": start,
    "step-8": lambda bench: step(bench, 8),
    "search": search,
    "miou": miou,
    "sharing": sharing,
    "step-1": lambda bench: step(bench, 1),
    "step-4": lambda bench: step(bench, 4),
    "cpu": cpu,
}
"""Parts by name, the most important ones first.  Each yields figures as it measures them."""
PREPARED = ("step-2", "step-8", "search")
"""Parts that `prepare_parts` prepares by default, those that come early."""
DRY_PARTS = ("step-2", "losses", "evaluation", "start", "miou")
"""Parts that run on a CPU within seconds."""


def prepare_parts(bench: Bench, names: Sequence[str], limit_s: float) -> None:
    """Compile the training steps that parts will need, and draw the frames of the search, side by side.

    Each takes about a minute and is kept in the folder of the benchmark; the parts measure one after the other.
    """
    setups = {replace(bench.setup, batch=int(name.split("-")[1])) for name in names if name.startswith("step-")}
    setups |= {bench.setup for name in names if name in {"evaluation", "start", "sharing"}}
    jobs: list[tuple[Callable[..., object], Any]] = []
    if "search" in names:
        setups.add(replace(bench.setup, size=SEARCH_SIZE))
        jobs.append((draw_frames, search_settings(bench)))
    jobs += [(our_training, setup) for setup in setups]
    processes = [PROCESSES.Process(target=job, args=(argument,), daemon=False) for job, argument in jobs]
    for process in processes:
        process.start()
    end = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode != 0:
            print(f"preparing failed or was cut off, exit code {process.exitcode}", flush=True)
            process.kill()


def draw_frames(settings: dict[str, Any]) -> None:
    """Draw the frames of a run of `search.run` with these settings."""
    run = build([read_layer(ROOT / "configs" / "quickstart.yaml", skip="search"), Layer("benchmark", settings)])
    load_splits(run.data, ("train", "val"))


def bench_of(folder: Path, dry: bool, seconds: float) -> Bench:
    """Return the setup over the scenes and the cache in a folder."""
    size, frames, model = ((64, 128), 2, "small") if dry else ((512, 1024), SCENES, "b0")
    device, evaluated = ("cpu", 2) if dry else ("cuda", EVALUATED)
    setup = Setup(folder / "streets", folder, size, frames, 2, seconds, model, 0, device, evaluated=evaluated)
    return Bench(setup, dry)


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


def measure_parts(names: Sequence[str], folder: Path, minutes: float, seconds: float) -> dict[str, float]:
    """Run the parts one after the other until the time is over; returns all figures."""
    end, figures = time.monotonic() + 60 * minutes, {}
    for name in names:
        if time.monotonic() > end:
            print(f"{name}: not begun, the time is over", flush=True)
            continue
        command = [sys.executable, "-m", "scripts.bench.gpu", "--part", name, str(folder), "--seconds", str(seconds)]
        figures |= collect(command, end - time.monotonic())
    return figures


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, metavar="N", help="time of all parts (default: 8)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="duration of a measurement (default: 5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--dry", action="store_true", help="try the script on the CPU")
    parser.add_argument("--part", nargs=2, metavar=("PART", "DIR"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table of the targets."""
    options = parse(arguments)
    if options.part:
        name, folder = options.part
        return show(name, PARTS[name](bench_of(Path(folder), dry=False, seconds=options.seconds)))
    print(machine_with_gpu(), flush=True)
    begun = time.monotonic()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fg-", dir="/tmp") as folder:  # a socket's path may have 107 characters
        bench = bench_of(Path(folder), options.dry, 0.0 if options.dry else options.seconds)
        write_scenes(bench.setup.root, bench.setup.frames, 2 * bench.setup.size[0], 2 * bench.setup.size[1])
        if options.dry:
            for name in options.only or DRY_PARTS:
                show(name, PARTS[name](bench))
        else:
            started = time.monotonic()
            prepare_parts(bench, options.only or PREPARED, 60 * options.minutes / 2)
            print(f"preparing took {time.monotonic() - started:.0f} s", flush=True)
            minutes = options.minutes - (time.monotonic() - begun) / 60
            figures = measure_parts(options.only or list(PARTS), Path(folder), minutes, options.seconds)
    print("| target | goal | measured | |\n|---|---|---|---|")
    print("\n".join(target.row(figures) for target in TARGETS))


if __name__ == "__main__":
    main()
