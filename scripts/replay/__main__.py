"""Replay searches against recordings, without training: python -m scripts.replay FILE.npz... [--repetitions 200]

Runs the samplers and pruners of the product on recorded curves and prints, with 95 % intervals over the repetitions,
the regret of the selected trial by number of trials, the epochs spent, and how well each epoch ranks the points.

The regret is the mIoU of the best point minus that of the selected one, both without noise.  A proposed point counts as
its nearest recorded one, so that figures of few recorded points are coarse; the tables state the mean distance.  With
--interpolate a Gaussian process gives the curves between the recorded points.  Every trial has the noise of a recorded
seed of the start point.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import get_args

import numpy as np
from scipy.stats import spearmanr

from scripts.arguments import existing_file, positive
from scripts.replay.intervals import RESAMPLES, mean_with_interval
from scripts.replay.methods import Method, Outcome, replay
from scripts.replay.recording import Recording, load_recording
from search.sampling.samplers import Prior
from search.study.config import SearchConfig

CLOSE = 0.003
"""Regret, in mIoU, up to which the selected trial counts as good as the best point."""


def main() -> None:
    """Run the command line."""
    options = parse()
    left_out = {"none"} if options.short else {"none", "short-full"}
    methods = [Method(name, "none") for name in options.samplers]
    methods += [Method("auto", "none", Prior(*prior)) for prior in options.prior]
    sampler = SearchConfig(pruner="asha").resolved_sampler  # the same for all pruners
    methods += [Method(sampler, name) for name in options.pruners if name not in left_out]
    kind = {"short": options.short, "interpolated": options.interpolate}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for path in options.files:
            recording = load_recording(path)
            between = "curves interpolated" if options.interpolate else "curves of the nearest recorded point"
            print(f"\n## {path.name}: {describe(recording)}; {between}\n")
            print_ranks(recording, load_recording(options.short) if options.short else None)
            jobs = {
                method: [
                    pool.submit(replay, path, method, seed, options.trials, **kind)
                    for seed in range(options.repetitions)
                ]
                for method in methods
            }
            outcomes = {method: [job.result() for job in runs] for method, runs in jobs.items()}
            print_regrets(outcomes)
            print_costs(outcomes, options.trials * recording.epochs)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    samplers, pruners = (get_args(SearchConfig.model_fields[name].annotation) for name in ("sampler", "pruner"))
    parser = argparse.ArgumentParser(prog="python -m scripts.replay", description=__doc__)
    parser.add_argument("files", type=existing_file, nargs="+", help="recordings")
    parser.add_argument("--samplers", nargs="*", choices=samplers, default=samplers, help="default: all, no pruner")
    parser.add_argument("--pruners", nargs="*", choices=pruners, default=pruners, help="default: all, sampler tpe")
    text = "also the sampler auto with a prior of this strength and width; may be given several times"
    parser.add_argument(
        "--prior", nargs=2, type=float, metavar=("STRENGTH", "WIDTH"), action="append", default=[], help=text
    )
    text = "interpolate the curves between the recorded points, instead of taking those of the nearest one"
    parser.add_argument("--interpolate", action="store_true", help=text)
    text = "recording of the same points with a quarter of train.epochs, for short-full, which is left out without it"
    parser.add_argument("--short", type=existing_file, help=text)
    parser.add_argument("--trials", type=positive, default=20, help="trials of a search (default: 20)")
    parser.add_argument("--repetitions", type=positive, default=200, help="searches of each method (default: 200)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (default: 2)")
    return parser.parse_args(arguments)


def describe(recording: Recording) -> str:
    """Return family and size of a recording."""
    points = len({point for point, _ in recording.keys})
    frames = recording.truth.shape[0]
    return (
        f"{recording.header['space']['name']}, {points} points, {len(recording.keys)} trainings of {recording.epochs} "
        f"epochs, {frames} validation frames"
    )


def print_regrets(outcomes: dict[Method, list[Outcome]]) -> None:
    """Print the mean regret of the selected trial after 1, 2, 4, ... trials and after all."""
    trials = len(next(iter(outcomes.values()))[0].regrets)
    counts = sorted({trials, *(2**power for power in range(trials.bit_length()) if 2**power <= trials)})
    print("Regret of the selected trial (mIoU) by number of trials:\n")
    print("| method | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---:|" * len(counts))
    for method, runs in outcomes.items():
        cells = [mean_with_interval([run.regrets[count - 1] for run in runs]) for count in counts]
        print(f"| {method} | {' | '.join(cells)} |")


def print_costs(outcomes: dict[Method, list[Outcome]], full: int) -> None:
    """Print epochs, final regret and distance of each method.

    The regret that a pruner costs is the mean difference to the search of the same seed without a pruner.

    Args:
        outcomes: of each method.
        full: number of epochs without early stopping.
    """
    print(f"\nEpochs spent, of {full}, and the trial selected in the end:\n")
    columns = ("epochs", "share", "regret", "cost of the pruner", "by expected mIoU", f"within {CLOSE}")
    print(f"| method | {' | '.join(columns)} | distance to the recorded point |")
    print("|---" + "|---:" * (len(columns) + 1) + "|")
    for method, runs in outcomes.items():
        epochs = mean_with_interval([run.epochs for run in runs], digits=1)
        share = np.mean([run.epochs for run in runs]) / full
        final = [run.regrets[-1] for run in runs]
        close = 100 * np.mean([regret <= CLOSE for regret in final])
        distance = np.mean([run.distance for run in runs])
        whole = outcomes.get(replace(method, pruner="none"), [])
        cost = [run.regrets[-1] - same.regrets[-1] for run, same in zip(runs, whole, strict=bool(whole))]
        print(
            f"| {method} | {epochs} | {share:.2f} | {mean_with_interval(final)} "
            f"| {mean_with_interval(cost) if method.pruner != 'none' and cost else ''} "
            f"| {mean_with_interval([run.expected_regret for run in runs])} | {close:.0f} % | {distance:.2f} |"
        )


def print_ranks(recording: Recording, short: Recording | None = None) -> None:
    """Print how well each epoch ranks the points: Spearman's correlation with the last epoch, over distinct points.

    Args:
        recording: of whole trainings.
        short: of complete schedules of fewer epochs, whose last epoch is compared with that of the same points.
    """
    curves = first_curves(recording)
    generator = np.random.default_rng(0)
    print("Rank correlation of each epoch's mIoU with the last epoch's, 95 % bootstrap interval over the points:\n")
    print("| epoch | " + " | ".join(str(epoch) for epoch in range(1, recording.epochs + 1)) + " |")
    print("|---|" + "---:|" * recording.epochs)
    last = {point: curve[-1] for point, curve in curves.items()}
    epochs = np.array(list(curves.values())).T
    print(f"| correlation | {' | '.join(rank_correlation(e, epochs[-1], generator) for e in epochs)} |\n")
    if short is not None:
        both = [(curve[-1], last[point]) for point, curve in first_curves(short).items()]
        shown = rank_correlation(*np.array(both).T, generator)
        schedules = f"schedules of {short.epochs} instead of {recording.epochs} epochs, {len(both)} points"
        print(f"The same of complete {schedules}: {shown}\n")


def first_curves(recording: Recording) -> dict[tuple[float, ...], np.ndarray]:
    """Return the mIoU by epoch (E,) of the first training of each point."""
    return {point: recording.miou[row] for row, (point, _) in reversed(list(enumerate(recording.keys)))}


def rank_correlation(scores: np.ndarray, final: np.ndarray, generator: np.random.Generator) -> str:
    """Return Spearman's correlation of two scores (P,) with its bootstrap interval, as text."""
    draws = generator.integers(0, len(final), (RESAMPLES, len(final)))
    resampled = [spearmanr(scores[d], final[d]).statistic for d in draws if np.ptp(scores[d]) and np.ptp(final[d])]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{spearmanr(scores, final).statistic:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
