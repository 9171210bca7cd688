"""What `scripts.bench.gpu` measures: each part yields its figures as it measures them."""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from fgseg.devices import peak_gib, reset_peak
from fgseg.training import compiled_parts
from scripts.bench import equality
from scripts.bench.gpu_targets import EPOCHS, FRAMES, SEARCH_SIZE
from scripts.bench.jobs import (
    EVALUATED,
    JOBS,
    Setup,
    bandwidth,
    matrix_product,
    our_training,
    prepare_training,
    step_s,
    steps_s,
)
from scripts.bench.source_recipe import synchronized_time
from scripts.bench.train import CPU_SIZE, Figures, Row, alternate, figures, measure, share, sides, take_sample

ROOT = Path(__file__).parents[2]
SCENES, TRIALS, SEEDS = 24, 4, 3
"""PNG files of the source's recipe, trials of the search, and trainings of each side of the comparison of mIoU."""
PROFILED, SHOWN = 5, 45
"""Steps that are profiled, and kernels that are shown."""
DRY_SCENES: dict[str, Any] = {"data.height": 64, "data.width": 128, "data.val": 2, "data.test": 0}
"""Settings of the scenes of a dry comparison of mIoU."""


@dataclass(frozen=True)
class Bench:
    """Setup of the measurements, shared by the parts.  Where `dry` is set, the script is only tried out on the CPU."""

    setup: Setup
    dry: bool

    def sides(self, job: str, setup: Setup) -> Figures:
        """Measure a job beside the source's in this process, which takes less time than starting another."""
        return figures(alternate({side: prepare(setup) for side, prepare in JOBS[job].items()}, setup.seconds))


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    measure: Callable[[Bench], Iterator[tuple[str, float]]]
    """Yields figures as it measures them."""
    limit_s: float
    """Seconds after which the part is cut off; chosen, from 64 s for compiling a step that was not prepared."""


def gpu_tests(bench: Bench) -> Iterator[tuple[str, float]]:
    """Run the tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "ignore", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    if done.returncode not in {0, 1} or not re.search(r"\d+ (passed|failed)", done.stdout):
        raise RuntimeError(f"no test has run; pytest ended with {done.returncode}")
    yield "failed tests", sum(int(count) for count in re.findall(r"(\d+) (?:failed|error)", done.stdout))


def step(bench: Bench, batch: int) -> Iterator[tuple[str, float]]:
    """Train bas_cp from files with one batch size, beside the source's recipe; then time our step alone."""
    setup, name = replace(bench.setup, batch=batch), f"batch of {batch}"
    with sides("training", setup, ["source"]) as connections:
        reset_peak(torch.device(setup.device))
        state, batches = prepare_training(setup)
        samples: dict[str, Callable[[], float]] = {
            "ours": lambda: batch / step_s(setup, state, batches),
            "source": partial(take_sample, connections["source"]),
        }
        yield from beside_source(name, figures(alternate(samples, setup.seconds)), higher_is_better=True)
    yield f"{name}: step with its input, ms", 1000 * step_s(setup, state, batches)
    yield f"{name}: step on one batch, ms", 1000 * step_s(setup, state, repeat(next(batches)))
    measured = {"compiling, s": state.step.compile_s, "peak, GiB": peak_gib(state.accelerator.device)}
    yield from ((f"{name}: {what}", value) for what, value in measured.items() if value is not None)
    yield f"{name}: plain step, ms", 1000 * step_s(setup, *prepare_training(setup, {"train.compile": "off"}))


def ceiling(bench: Bench) -> Iterator[tuple[str, float]]:
    """Measure what the device can do at most: the best of ten copies, and of ten matrix products."""
    jobs = {"copy, TB/s": bandwidth(bench.setup)}
    jobs |= {f"{dtype}, TFLOPS": matrix_product(bench.setup, dtype) for dtype in (torch.float32, torch.bfloat16)}
    yield from ((f"ceiling: {name}", max(sample() for _ in range(10)) / 1e12) for name, sample in jobs.items())


def bf16(bench: Bench) -> Iterator[tuple[str, float]]:
    """Time our step of two frames in bf16."""
    step_ms = 1000 * step_s(bench.setup, *prepare_training(bench.setup, {"train.precision": "bf16"}))
    yield "bf16: step with its input, ms", step_ms


def kernels(bench: Bench) -> Iterator[tuple[str, float]]:
    """List the kernels of our step of two frames with its input, the longest first."""
    on_gpu, state_and_batches = bench.setup.device == "cuda", prepare_training(bench.setup)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        steps_s(*state_and_batches, PROFILED)
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # in microseconds
    rows = [(getattr(e, time) / 1000 / PROFILED, e.count / PROFILED, e.key) for e in profiled.key_averages()]
    for milliseconds, count, name in sorted(rows, reverse=True)[:SHOWN]:
        print(f"{milliseconds:9.4f} ms  {count:6.1f} x  {name[:150]}")
    yield "kernels of a step", sum(count for _, count, _ in rows)
    yield "kernels of a step, ms", sum(milliseconds for milliseconds, _, _ in rows)


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
    """Compare the mIoU of trainings by the plain and by the fast step, with equal seeds.

    In a dry run the fast step is traced, and no code is generated.
    """
    frames, epochs, seeds, others = (2, 1, 2, DRY_SCENES) if bench.dry else (208, 5, SEEDS, {})
    scores: dict[str, list[float]] = {"plain": [], "fast": []}
    with patch.object(compiled_parts, "BACKEND", "eager" if bench.dry else compiled_parts.BACKEND):
        for seed in range(seeds):
            for side, setting in (("plain", "off"), ("fast", "on")):
                changes = others | {"train.compile": setting}
                task = equality.Task(side, seed, str(bench.setup.cache), frames, epochs, 5e-3, changes)
                scores[side].append(equality.ours(task))
                yield f"mIoU, {side}, seed {seed}", scores[side][-1]
    difference, error = equality.paired_difference(scores)
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
    from search.cluster.ray_cluster import set_ray_environment
    from search.run import main as run_search

    set_ray_environment()  # before the import of Ray, which reads them
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


PARTS = {
    "step-2": Part(lambda bench: step(bench, 2), 120),
    "losses": Part(losses, 120),
    "step-8": Part(lambda bench: step(bench, 8), 120),
    "evaluation": Part(evaluation, 60),
    "start": Part(start, 90),
    "search": Part(search, 200),
    "miou": Part(miou, 240),
    "sharing": Part(sharing, 300),
    "kernels": Part(kernels, 90),
    "bf16": Part(bf16, 120),
    "ceiling": Part(ceiling, 30),
    "step-1": Part(lambda bench: step(bench, 1), 190),
    "step-4": Part(lambda bench: step(bench, 4), 190),
    "cpu": Part(cpu, 180),
    "tests": Part(gpu_tests, 300),
}
"""Parts by name, the most important ones first."""
DRY_PARTS = ("step-2", "losses", "evaluation", "start", "kernels", "bf16", "ceiling", "miou")
"""Parts that run on a CPU within seconds."""


def bench_of(folder: Path, dry: bool, seconds: float) -> Bench:
    """Return the setup over the scenes and the cache in a folder."""
    size, frames, model = ((64, 128), 2, "small") if dry else ((512, 1024), SCENES, "b0")
    device, evaluated = ("cpu", 2) if dry else ("cuda", EVALUATED)
    setup = Setup(folder / "streets", folder, size, frames, 2, seconds, model, 0, device, evaluated=evaluated)
    return Bench(setup, dry)
