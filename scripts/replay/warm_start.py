"""Replay --warm-start against a recording: python -m scripts.replay.warm_start FILE.npz --study OTHER.npz

Prints how many trials searches need, without and with a warm start, to reach the mean regret of those without one; each
has twice the trials.  The related study is a
replayed search of the other recording with the same number of trials; of its selected point the settings that both
families search are used, the others come from the start point.  The misleading study gives the worst recorded point,
which costs at least the trial that evaluates it.  Curves are interpolated, with the noise of recorded seeds, see
scripts.replay.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from scripts.arguments import existing_file, positive
from scripts.replay.intervals import compare_trials
from scripts.replay.methods import Method, curves_of, replay
from scripts.replay.recording import Recording
from search.study.space import Space

METHOD = Method("auto", "none")
"""The default of a search; other samplers evaluate the points of --warm-start but have no prior."""


def main() -> None:
    """Run the command line."""
    options = parse()
    seeds = range(options.repetitions)
    print(f"{options.file.name} after {options.study.name}, curves interpolated, {options.repetitions} searches")
    print(f"trials to reach the mean regret of {options.trials} trials without warm start:")
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        cold = list(pool.map(partial(regrets, options.file, (), 2 * options.trials), seeds))
        for name, study in (("related", options.study), ("misleading", None)):
            warm = pool.map(partial(warm_regrets, options.file, study, options.trials), seeds)
            print(f"{name}: {compare_trials(cold, list(warm), options.trials)}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.replay.warm_start", description=__doc__)
    parser.add_argument("file", type=existing_file, help="recording of the family that is searched")
    parser.add_argument("--study", type=existing_file, required=True, help="recording of the related study's family")
    parser.add_argument("--trials", type=positive, default=20, help="trials of a search (default: 20)")
    parser.add_argument("--repetitions", type=positive, default=200, help="searches of each kind (default: 200)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (default: 2)")
    return parser.parse_args(arguments)


def warm_regrets(file: Path, study: Path | None, trials: int, seed: int) -> list[float]:
    """Return the regrets of a search of twice the trials that begins with a related or misleading point.

    Args:
        file: recording of the family that is searched.
        study: recording of the related study; None for a misleading one.
        trials: of the search without a warm start, and of the related study.
        seed: of both searches.
    """
    recording = curves_of(file, True).recording
    if study is None:
        point = worst_point(file)
    else:
        found = replay(study, METHOD, seed + 1000, trials, interpolated=True).selected
        point = shared_settings(found, recording)
    return regrets(file, (point,), 2 * trials, seed)


def regrets(file: Path, warm_start: Sequence[Mapping[str, float]], trials: int, seed: int) -> list[float]:
    """Return the regret of the selected trial after each trial."""
    return replay(file, METHOD, seed, trials, interpolated=True, warm_start=warm_start).regrets


def worst_point(file: Path) -> dict[str, float]:
    """Return the recorded point with the lowest final mIoU."""
    curves = curves_of(file, True)
    points = [curves.recording.point(row) for row in range(len(curves.recording.keys))]
    return min(points, key=curves.value)


def shared_settings(found: Mapping[str, float], recording: Recording) -> dict[str, float]:
    """Return the start point of a recording with the settings that another study has found, moved into the ranges."""
    space = Space("recording", "", {}, dict(recording.ranges))
    return space.nearest(recording.point(0) | found)


if __name__ == "__main__":
    sys.exit(main())
