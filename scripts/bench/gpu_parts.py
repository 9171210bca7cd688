"""What `scripts.bench.gpu` measures: each part yields its figures as it measures them."""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.bench import equality
from scripts.bench.gpu_targets import EPOCHS, FRAMES, SEARCH_SIZE
from scripts.bench.jobs import EVALUATED, JOBS, Setup, our_training
from scripts.bench.source_recipe import synchronized_time
from scripts.bench.train import CPU_SIZE, Figures, Row, alternate, figures, measure, share

ROOT = Path(__file__).parents[2]
SCENES, TRIALS, SEEDS = 24, 4, 3
"""PNG files of the source's recipe, trials of the search, and trainings of each side of the comparison of mIoU."""
DRY_SCENES: dict[str, Any] = {"data.height": 64, "data.width": 128, "data.val": 2, "data.test": 0}
"""Settings of the scenes of a dry comparison of mIoU."""

Parts = dict[str, Callable[["Bench"], Iterator[tuple[str, float]]]]


@dataclass(frozen=True)
class Bench:
    """Setup of the measurements, shared by the parts.  Where `dry` is set, the script is only tried out on the CPU."""

    setup: Setup
    dry: bool

    def sides(self, job: str, setup: Setup) -> Figures:
        """Measure a job beside the source's in this process, which takes less time than starting another."""
        return figures(alternate({side: prepare(setup) for side, prepare in JOBS[job].items()}, setup.seconds))


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
DRY_PARTS = ("step-2", "losses", "evaluation", "start", "miou")
"""Parts that run on a CPU within seconds."""


def bench_of(folder: Path, dry: bool, seconds: float) -> Bench:
    """Return the setup over the scenes and the cache in a folder."""
    size, frames, model = ((64, 128), 2, "small") if dry else ((512, 1024), SCENES, "b0")
    device, evaluated = ("cpu", 2) if dry else ("cuda", EVALUATED)
    setup = Setup(folder / "streets", folder, size, frames, 2, seconds, model, 0, device, evaluated=evaluated)
    return Bench(setup, dry)
