"""The source's recipe and ours side by side: python -m scripts.bench.train [--data CITYSCAPES] [--share 4]

Needs torch, transformers and accelerate, and of the project only fgseg.  Each side runs in a process of its own, one
at a time and in turn; a figure is the median of its samples.
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fgseg.data.streets.scene import render
from fgseg.labels import CLASSES
from scripts.bench.jobs import EVALUATED, JOBS, Setup

CPU_SIZE = (256, 512)
PROCESSES = get_context("spawn")
ELSEWHERE = "| driver held up per reported epoch | | | see scripts/bench/orchestration.py | 10 ms |"
"""The goal that needs a whole search to be measured."""
FLOOR_BYTES = 2e9
"""What forward and backward of SegFormer-B0 must move for a 512x1024 image in 16 bits; an estimate by counting."""


@dataclass(frozen=True)
class Row:
    """A line of the table: what is measured, in which unit, and what to reach."""

    name: str
    job: str
    setup: Setup
    unit: str
    goal: float
    """Least ratio to the source; for a job without a source, most seconds."""


@dataclass(frozen=True)
class Figures:
    """Medians of either side; none where there is nothing to compare with."""

    ours: float
    source: float | None


def rows(options: argparse.Namespace, base: Setup) -> list[Row]:
    """The lines of the goals' table."""
    large = replace(base, batch=8)
    cpu = replace(base, size=options.cpu_size, device="cpu", threads=min(2, os.cpu_count() or 1))
    shape, small = "x".join(map(str, base.size)), "x".join(map(str, cpu.size))
    both = "forward and backward"
    gpu_rows = [
        Row(f"bas_cp training, {shape}, batch of 2", "training", base, "images/s", 6),
        Row(f"bas_cp training, {shape}, batch of 8", "training", large, "images/s", 10),
        Row(f"hybrid loss, {both}, per image, batch of 2", "bas loss", base, "ms", 10),
        Row(f"hybrid loss, {both}, per image, batch of 8", "bas loss", large, "ms", 10),
        Row(f"approach-3 loss, {both}, per image, batch of 2", "slc loss", base, "ms", 6),
        Row(f"approach-3 loss, {both}, per image, batch of 8", "slc loss", large, "ms", 6),
        Row(f"evaluation of {EVALUATED} images of {shape}", "evaluation", base, "s", 3),
    ]
    cpu_rows = [
        Row(f"CPU: hybrid loss, {both}, per image, {small}", "bas loss", cpu, "ms", 1.5),
        Row(f"CPU: approach-3 loss, {both}, per image, {small}", "slc loss", cpu, "ms", 1.5),
        Row(f"CPU: whole step without files, {small}, batch of 2", "step", cpu, "ms", 2),
        Row(f"CPU: bas_cp training from files, {small}, batch of 2", "training", cpu, "images/s", 2),
    ]
    return gpu_rows + cpu_rows


def measure(row: Row, seconds: float) -> Figures:
    """Take samples of both sides in turn, for at least `seconds` and three rounds."""
    with sides(row) as connections:
        samples: dict[str, list[float]] = {side: [] for side in connections}
        started = time.monotonic()
        while len(samples["ours"]) < 3 or time.monotonic() - started < seconds:
            for side, connection in connections.items():
                samples[side].append(ask(connection))
    medians = {side: statistics.median(values) for side, values in samples.items()}
    return Figures(medians["ours"], medians.get("source"))


@contextmanager
def sides(row: Row) -> Iterator[dict[str, Connection]]:
    """A process for each side of a row's job, prepared one after the other."""
    processes, connections = [], {}
    try:
        for side in JOBS[row.job]:
            connection, other = PROCESSES.Pipe()
            processes.append(PROCESSES.Process(target=serve, args=(other, row.job, side, row.setup), daemon=False))
            processes[-1].start()
            other.close()
            connections[side] = connection
            connection.recv()
        yield connections
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(60)
            process.kill()


def serve(connection: Connection, job: str, side: str, setup: Setup) -> None:
    """Prepare a side, and give a sample whenever asked, until the connection closes."""
    if setup.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fgseg.training.compiled_step").setLevel(logging.INFO)  # tells what compilation took
    sample = JOBS[job][side](setup)
    connection.send("ready")
    try:
        while connection.recv() == "sample":
            connection.send(sample())
    except EOFError:
        return


def ask(connection: Connection) -> float:
    """Take one sample."""
    time.sleep(0.02)  # the threads of the side before go on spinning for a while
    connection.send("sample")
    value: float = connection.recv()
    return value


def share(row: Row, count: int) -> float:
    """Images per second of `count` trainings at once, each with its share of the device."""
    threads = max(1, (os.cpu_count() or 1) // count) if row.setup.device == "cpu" else row.setup.threads
    part = replace(row.setup, share=1 / count, threads=threads)
    pairs = [PROCESSES.Pipe() for _ in range(count)]
    processes = [PROCESSES.Process(target=serve, args=(end, row.job, "ours", part)) for _, end in pairs]
    for process, (_, end) in zip(processes, pairs, strict=True):
        process.start()
        end.close()
    connections = [connection for connection, _ in pairs]
    for connection in connections:
        connection.recv()
    for connection in connections:
        connection.send("sample")
    total = sum(connection.recv() for connection in connections)
    for connection, process in zip(connections, processes, strict=True):
        connection.close()
        process.join(60)
    return total


def write_scenes(root: Path, count: int, height: int, width: int) -> None:
    """Procedural streets as PNG files in the layout of Cityscapes, one more than `count` (for validation)."""
    ids = np.array([7 if c.cityscapes_id is None else c.cityscapes_id for c in CLASSES], np.uint8)
    for index in range(count + 1):
        image, labels = render(0, index, height, width)
        for folder, ending, array in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", ids[labels]),
        ):
            path = root / folder / "train" / "streets" / f"streets_{index:06d}_000000_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def machine() -> str:
    """Processor, cores and how busy they are, GPU and versions, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    busy = f"{os.getloadavg()[0]:.1f} of them busy before the start"
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name}, {busy}; {gpu}; {versions}"


def line(row: Row, figures: Figures | None) -> str:
    """A row of the table."""
    goal = f"{row.goal:g}x" if "source" in JOBS[row.job] else f"{row.goal:g} {row.unit}"
    if figures is None:
        return f"| {row.name} | | | not measured here: needs a GPU | {goal} |"
    scale = 1000 if row.unit == "ms" else 1
    ours = f"{figures.ours * scale:.4g} {row.unit}"
    if figures.source is None:
        return f"| {row.name} | | {ours} | {'reached' if figures.ours <= row.goal else 'missed'} | {goal} |"
    ratio = figures.ours / figures.source
    ratio = ratio if row.unit == "images/s" else 1 / ratio
    return f"| {row.name} | {figures.source * scale:.4g} {row.unit} | {ours} | {ratio:.2f}x | {goal} |"


def floor(base: Setup, figures: Figures) -> str:
    """How far training is from the time that moving its bytes takes."""
    with sides(Row("", "bandwidth", base, "B/s", 0)) as connections:
        rate = max(ask(connections["ours"]) for _ in range(5))
    pixels = base.size[0] * base.size[1] / (512 * 1024)
    least, taken = FLOOR_BYTES * pixels / rate, 1 / figures.ours
    moved = f"{FLOOR_BYTES * pixels / 1e9:.1f} GB"
    return (
        f"A copy moves {rate / 1e12:.2f} TB/s, so an image's {moved} take {least * 1e3:.2f} ms; "
        f"training takes {taken * 1e3:.2f} ms, {taken / least:.1f} times that."
    )


def size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH."""
    height, width = map(int, text.split("x"))
    return height, width


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="Cityscapes layout (default: synthetic streets as PNG)"
    )
    parser.add_argument("--frames", type=int, default=64 if gpu else 16, metavar="N", help="frames to train on")
    parser.add_argument("--png", type=size, default=(1024, 2048), metavar="HxW", help="size of the synthetic files")
    parser.add_argument("--size", type=size, default=(512, 1024), metavar="HxW", help="training size on a GPU")
    parser.add_argument("--cpu-size", type=size, default=CPU_SIZE, metavar="HxW", help="training size on the CPU")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="length of each measurement")
    parser.add_argument("--model", default="b0", help="small or b0..b5 (default: b0)")
    parser.add_argument("--share", type=int, default=0, metavar="N", help="also train N models at once")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table."""
    options, gpu = parse(arguments), torch.cuda.is_available()
    print(machine(), flush=True)
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
    """What follows the table: the floor on a GPU, and sharing."""
    measured = [row for row in table if row.job == "training" and results[row.name] is not None]
    if measured and base.device == "cuda":
        print(floor(base, results[measured[0].name]))
    if measured and options.share:
        alone, together = results[measured[0].name].ours, share(measured[0], options.share)
        print(f"{options.share} at once: {together:.4g} images/s in all, {together / alone:.2f} times one alone")


if __name__ == "__main__":
    main()
