"""Measure the noise between seeds in recordings: python -m scripts.replay.seeds FILE.npz... [--comparisons 200]

Takes the recorded seeds of the start point of each recording (`scripts.replay.record --seeds 20`), and prints the
standard deviation of mIoU between them, how many seeds a comparison needs, and how often a family differs significantly
from itself (A/A test).  For two recordings of the same frames it prints how mIoU correlates between equal seeds.
"""

import argparse
from collections.abc import Callable
from itertools import combinations

import numpy as np
from scipy.stats import pearsonr

from scripts.arguments import existing_file, positive
from scripts.replay.recording import Recording, load_recording
from search.compare.power import false_alarms, read_noise, seeds_needed
from search.compare.seeds import DIFFERENCES
from search.compare.statistics import Array, bootstrap

SIDES = (2, 3, 5, 10)
"""Seeds of each side of the A/A tests."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=existing_file, nargs="+", help="recordings")
    parser.add_argument("--comparisons", type=positive, default=200, help="comparisons of each A/A test (default: 200)")
    options = parser.parse_args()
    recordings = {path.name: load_recording(path) for path in options.files}
    needed = " | ".join(f"seeds for {difference:g}" for difference in DIFFERENCES)
    alarms = " | ".join(f"A/A, {seeds} seeds" for seeds in SIDES)
    print(f"| recording | seeds | mIoU of the start point | {needed} | {alarms} |")
    print("|---|" + "---:|" * (2 + len(DIFFERENCES) + len(SIDES)))
    for name, recording in recordings.items():
        print(row(name, recording, options.comparisons), flush=True)
    for (name, one), (other_name, other) in combinations(recordings.items(), 2):
        if np.array_equal(one.truth, other.truth):
            print(f"\nmIoU of equal seeds, {name} and {other_name}: {correlation(one, other)}")


def row(name: str, recording: Recording, comparisons: int) -> str:
    """Return a row of the table."""
    start = of_start_point(recording)
    counts, last = counts_of(start), start.miou[:, -1]
    cells = [f"{len(last)}", f"{last.mean():.4f} ± {last.std(ddof=1):.4f}"]
    cells += [str(seeds_for(counts, difference, start) or "more than 1,000") for difference in DIFFERENCES]
    for seeds in SIDES:
        enough = 2 * seeds <= len(last)
        score = score_of(start)
        cells.append(f"{false_alarms(counts, score, seeds, comparisons=comparisons):.1%}" if enough else "")
    return f"| {name} | {' | '.join(cells)} |"


def of_start_point(recording: Recording) -> Recording:
    """Return the rows of the start point, which is the point of the first row, in the order of their seeds."""
    same = np.flatnonzero((recording.params == recording.params[0]).all(1))
    return recording.rows(same[np.argsort(recording.seeds[same])])


def counts_of(start: Recording) -> Array:
    """Return the counts of the last epoch, (S, F, 3 K), as `bootstrap` takes them: hits, predicted and true pixels."""
    labels = [label for _, label in start.header["foreground"]]
    truth = np.broadcast_to(start.truth, start.hits[:, -1].shape)
    parts = (start.hits[:, -1], start.predicted[:, -1], truth)
    return np.concatenate([part[..., labels].astype(float) for part in parts], -1)


def score_of(start: Recording) -> Callable[[Array], Array]:
    """Return the score of `bootstrap`: mIoU over the foreground classes that occur, (..., 1), from sums (..., 3 K)."""
    labels = [label for _, label in start.header["foreground"]]
    occurs = start.truth.sum(0)[labels] > 0

    def score(sums: Array) -> Array:
        hits, predicted, truth = np.split(sums, 3, -1)
        iou: Array = hits / np.maximum(truth + predicted - hits, 1)
        return iou[..., occurs].mean(-1, keepdims=True)

    return score


def seeds_for(counts: Array, difference: float, start: Recording) -> int | None:
    """Return the seeds that find a difference between two families whose seeds vary like those of the start point."""
    half = len(counts) // 2
    score, sides = score_of(start), (counts[:half], counts[half : 2 * half])
    resampled = bootstrap(sides, score)
    by_seed = score(sides[0].sum(1))[:, -1] - score(sides[1].sum(1))[:, -1]
    noise = read_noise(list(by_seed), resampled[0][:, -1] - resampled[1][:, -1], counts.shape[1])
    return seeds_needed(difference, noise)


def correlation(one: Recording, other: Recording) -> str:
    """Return Pearson's correlation of the last mIoU of two start points over their common seeds, with its interval."""
    one, other = of_start_point(one), of_start_point(other)
    seeds, rows, other_rows = np.intersect1d(one.seeds, other.seeds, return_indices=True)
    found = pearsonr(one.miou[rows, -1], other.miou[other_rows, -1])
    low, high = found.confidence_interval()
    return f"correlation {found.statistic:.2f} ({low:.2f} to {high:.2f}) over {len(seeds)} seeds"


if __name__ == "__main__":
    main()
