"""Compare the speed of the source's recipe with ours: python -m scripts.bench.train [--data CITYSCAPES] [--share 4]

Imports fgseg but not search, so torch, transformers and accelerate suffice.  Each side runs in its own process; samples
of the sides alternate, and each result is the median of its samples.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fgseg.data.streets.scene import render
from scripts.arguments import positive
from scripts.bench.jobs import EVALUATED, JOBS, Setup
from scripts.bench.machine import machine_with_gpu

CPU_SIZE = (256, 512)
PROCESSES = get_context("spawn")
END_S = 5.0
"""Seconds that the processes of a measurement together may take to end; less than a part has after its interruption,
see `scripts.bench.gpu.INTERRUPT_S`."""
ELSEWHERE = "| driver held up per reported epoch | | | see scripts/bench/orchestration.py | 5 ms |"
"""Row of the goal that only a whole search can measure."""
FLOOR_BYTES = 2e9
"""Minimum bytes that forward and backward of SegFormer-B0 move for a 512x1024 image in 16 bits; an estimate."""


@dataclass(frozen=True)
class Row:
    """One row of the table: job, setup, unit and goal."""

    name: str
    job: str
    setup: Setup
    unit: str
    goal: float
    """Minimum ratio to the source; for a job without a source, maximum seconds."""


@dataclass(frozen=True)
class Figures:
    """Median of each side; `source` is None for a job without a source."""

    ours: float
    source: float | None


def rows(options: argparse.Namespace, base: Setup) -> list[Row]:
    """Return the rows of the table."""
    large = replace(base, batch=8)
    cpu = replace(base, size=options.cpu_size, device="cpu", threads=min(2, os.cpu_count() or 1))
    shape, small = "x".join(map(str, base.size)), "x".join(map(str, cpu.size))
    both = "forward and backward"
    gpu_rows = [
        Row(f"bas_cp training, {shape}, batch of 2", "training", base, "images/s", 8),
        Row(f"bas_cp training, {shape}, batch of 8", "training", large, "images/s", 14),
        Row(f"hybrid loss, {both}, per image, batch of 2", "bas loss", base, "ms", 10),
        Row(f"hybrid loss, {both}, per image, batch of 8", "bas loss", large, "ms", 10),
        Row(f"approach-3 loss, {both}, per image, batch of 2", "slc loss", base, "ms", 6),
        Row(f"approach-3 loss, {both}, per image, batch of 8", "slc loss", large, "ms", 6),
        Row(f"evaluation of {EVALUATED} images of {shape}", "evaluation", base, "s", 3),
    ]
    cpu_rows = [
        Row(f"CPU: hybrid loss, {both}, per image, {small}", "bas loss", cpu, "ms", 2.4),
        Row(f"CPU: approach-3 loss, {both}, per image, {small}", "slc loss", cpu, "ms", 2.4),
        Row(f"CPU: whole step without files, {small}, batch of 2", "step", cpu, "ms", 2),
        Row(f"CPU: bas_cp training from files, {small}, batch of 2", "training", cpu, "images/s", 2),
    ]
    return gpu_rows + cpu_rows


def measure(row: Row, seconds: float) -> Figures:
    """Measure both sides of a row, see `medians_of`."""
    return figures(medians_of(row.job, row.setup, seconds))


def figures(medians: Mapping[str, float]) -> Figures:
    """Return the medians of the sides `ours` and `source`, of which the latter may be missing."""
    return Figures(medians["ours"], medians.get("source"))


def medians_of(job: str, setup: Setup, seconds: float) -> dict[str, float]:
    """Measure each side of a job in a process of its own; see `alternate`."""
    with sides(job, setup) as connections:
        return alternate({side: partial(take_sample, connection) for side, connection in connections.items()}, seconds)


def alternate(samples: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """Take alternating samples of the sides, for at least `seconds` and three rounds; returns the medians."""
    values: dict[str, list[float]] = {side: [] for side in samples}
    started, rounds = time.monotonic(), 0
    while rounds < 3 or time.monotonic() - started < seconds:
        for side, sample in samples.items():
            values[side].append(sample())
        rounds += 1
    return {side: statistics.median(of_side) for side, of_side in values.items()}


@contextmanager
def sides(job: str, setup: Setup, only: Collection[str] | None = None) -> Iterator[dict[str, Connection]]:
    """Start a process for each side of a job, or for some; yields the connections by side once all are ready."""
    processes, connections = [], {}
    try:
        for side in only or JOBS[job]:
            connection, other = PROCESSES.Pipe()
            processes.append(PROCESSES.Process(target=serve, args=(other, job, side, setup), daemon=False))
            processes[-1].start()
            other.close()
            connections[side] = connection
        for connection in connections.values():
            connection.recv()
        yield connections
    finally:
        end_all(processes, connections.values())


def end_all(processes: Iterable[BaseProcess], connections: Iterable[Connection]) -> None:
    """Close the connections, at which the processes end, and kill those that have not ended after `END_S`."""
    for connection in connections:
        connection.close()
    end = time.monotonic() + END_S
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()


def serve(connection: Connection, job: str, side: str, setup: Setup) -> None:
    """Prepare a side, then send one sample per request until the connection closes; runs in the child."""
    if setup.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fgseg.training.compiled_step").setLevel(logging.INFO)  # logs the time of compilation
    sample = JOBS[job][side](setup)
    connection.send("ready")
    try:
        while connection.recv() == "sample":
            connection.send(sample())
    except EOFError:
        return


def take_sample(connection: Connection) -> float:
    """Request one sample and wait for it."""
    time.sleep(0.02)  # threads of the other side go on spinning for a while after its sample
    connection.send("sample")
    value: float = connection.recv()
    return value


def share(row: Row, count: int) -> float:
    """Return the total images per second of `count` concurrent trainings, each with its share of the device."""
    threads = max(1, (os.cpu_count() or 1) // count) if row.setup.device == "cpu" else row.setup.threads
    part = replace(row.setup, share=1 / count, threads=threads)
    pairs = [PROCESSES.Pipe() for _ in range(count)]
    processes = [PROCESSES.Process(target=serve, args=(end, row.job, "ours", part)) for _, end in pairs]
    for process, (_, end) in zip(processes, pairs, strict=True):
        process.start()
        end.close()
    connections = [connection for connection, _ in pairs]
    try:
        for connection in connections:
            connection.recv()
        for connection in connections:
            connection.send("sample")
        return sum(connection.recv() for connection in connections)
    finally:
        end_all(processes, connections)


def write_scenes(root: Path, count: int, height: int, width: int) -> None:
    """Write `count` + 1 procedural scenes (one for validation) as PNG files in the layout of Cityscapes."""
    with ProcessPoolExecutor(mp_context=PROCESSES) as pool:
        list(pool.map(partial(write_scene, root, height, width), range(count + 1)))


def write_scene(root: Path, height: int, width: int, index: int) -> None:
    """Write one procedural scene and its labels."""
    image, ids = render(0, index, height, width)
    for folder, ending, array in (
        ("leftImg8bit", "leftImg8bit", image),
        ("gtFine", "gtFine_labelIds", ids),
    ):
        path = root / folder / "train" / "streets" / f"streets_{index:06d}_000000_{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def line(row: Row, measured: Figures | None) -> str:
    """Format a row of the table; `measured` is None if it was not."""
    goal = f"{row.goal:g}x" if "source" in JOBS[row.job] else f"{row.goal:g} {row.unit}"
    if measured is None:
        return f"| {row.name} | | | not measured here: needs a GPU | {goal} |"
    scale = 1000 if row.unit == "ms" else 1
    ours = f"{measured.ours * scale:.4g} {row.unit}"
    if measured.source is None:
        return f"| {row.name} | | {ours} | {'reached' if measured.ours <= row.goal else 'missed'} | {goal} |"
    ratio = measured.ours / measured.source
    ratio = ratio if row.unit == "images/s" else 1 / ratio
    return f"| {row.name} | {measured.source * scale:.4g} {row.unit} | {ours} | {ratio:.2f}x | {goal} |"


def floor(base: Setup, training: Figures) -> str:
    """Compare the time per image with the minimum time to move its bytes, in a sentence."""
    with sides("bandwidth", base) as connections:
        rate = max(take_sample(connections["ours"]) for _ in range(5))
    pixels = base.size[0] * base.size[1] / (512 * 1024)
    least, taken = FLOOR_BYTES * pixels / rate, 1 / training.ours
    moved = f"{FLOOR_BYTES * pixels / 1e9:.1f} GB"
    return (
        f"A copy moves {rate / 1e12:.2f} TB/s, so an image's {moved} take {least * 1e3:.2f} ms; "
        f"training takes {taken * 1e3:.2f} ms, {taken / least:.1f} times that."
    )


def size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    height, width = map(int, text.split("x"))
    return height, width


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="Cityscapes layout (default: synthetic streets as PNG)"
    )
    parser.add_argument("--frames", type=positive, default=64 if gpu else 16, metavar="N", help="frames to train on")
    parser.add_argument("--png", type=size, default=(1024, 2048), metavar="HxW", help="size of the synthetic files")
    parser.add_argument("--size", type=size, default=(512, 1024), metavar="HxW", help="training size on a GPU")
    parser.add_argument("--cpu-size", type=size, default=CPU_SIZE, metavar="HxW", help="training size on the CPU")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="duration of each measurement")
    parser.add_argument("--model", default="b0", help="small or b0..b5 (default: b0)")
    parser.add_argument("--share", type=int, default=0, metavar="N", help="also train N models concurrently")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains this text")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table."""
    options, gpu = parse(arguments), torch.cuda.is_available()
    print(machine_with_gpu(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or Path(folder) / "streets"
        if options.data is None:
            print(f"synthetic scenes: {options.frames} PNG files of {options.png[1]}x{options.png[0]}", flush=True)
            write_scenes(root, options.frames, *options.png)
        base = Setup(
            root,
            Path(folder),
            options.size,
            options.frames,
            2,
            options.seconds,
            options.model,
            0,
            "cuda" if gpu else "cpu",
        )
        table = [row for row in rows(options, base) if options.only in row.name]
        print("| what | source | ours | ratio | goal |\n|---|---|---|---|---|", flush=True)
        results: dict[str, Figures | None] = {}
        for row in table:
            results[row.name] = measure(row, options.seconds) if gpu or row.name.startswith("CPU") else None
            print(line(row, results[row.name]), flush=True)
        if options.only in ELSEWHERE:
            print(ELSEWHERE)
        print_more(options, base, table, results)


def print_more(options: argparse.Namespace, base: Setup, table: list[Row], results: dict[str, Any]) -> None:
    """Print the results below the table: the minimum time on a GPU, and concurrent trainings."""
    measured = [row for row in table if row.job == "training" and results[row.name] is not None]
    if measured and base.device == "cuda":
        print(floor(base, results[measured[0].name]))
    if measured and options.share:
        alone, together = results[measured[0].name].ours, share(measured[0], options.share)
        print(f"{options.share} at once: {together:.4g} images/s in all, {together / alone:.2f} times one alone")


if __name__ == "__main__":
    main()
