"""Measure what a step of the complete recipe costs on the CPU: python -m scripts.bench.recipe

Trains bas_cp from frames in memory with the source's settings and with every setting that the source does not have (see
`jobs.RECIPE`), each in a process of its own; samples alternate, and each result is the median of its samples.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.jobs import Setup
from scripts.bench.machine import machine_with_gpu
from scripts.bench.train import CPU_SIZE, medians_of, size, write_scenes

GOAL = 0.15
"""Largest share by which the recipe may lengthen a step."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line of the result."""
    options = parse(arguments)
    print(machine_with_gpu(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "streets", options.frames, *options.size)
        setup = Setup(
            root=Path(folder) / "streets",
            cache=Path(folder),
            size=options.size,
            frames=options.frames,
            batch=2,
            seconds=options.seconds / 6,
            model=options.model,
            threads=min(2, os.cpu_count() or 1),
            device="cpu",
        )
        rates = medians_of("recipe", setup, options.seconds)
    steps_s = {side: setup.batch / images_per_s for side, images_per_s in rates.items()}
    print(result_line(steps_s["without"], steps_s["with"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.recipe", description=__doc__)
    parser.add_argument("--size", type=size, default=CPU_SIZE, metavar="HxW", help="size of frames (default: 256x512)")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="frames to train on (default: 16)")
    parser.add_argument("--model", default="b0", help="small or b0..b5 (default: b0)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="of both together (default: 60)")
    return parser.parse_args(arguments)


def result_line(without_s: float, with_s: float) -> str:
    """Format the seconds of a step without and with the recipe, and compare their ratio with the goal."""
    more = with_s / without_s - 1
    judgement = "reached" if more <= GOAL else "missed"
    return (
        f"a step of two frames: {without_s * 1000:.4g} ms without the recipe, {with_s * 1000:.4g} ms with it: "
        f"{more:+.1%} (goal: at most {GOAL:+.0%}, {judgement})"
    )


if __name__ == "__main__":
    sys.exit(main())
