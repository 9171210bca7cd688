"""How many seeds a comparison has and needs: `--seeds auto`, and the power that `--dry-run` prints."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rich.console import Console

from search.compare.plans import MAX_AUTO_SEEDS
from search.compare.power import Noise, power, read_noise, seeds_needed
from search.compare.repeats import family, finished_repeats, trials_of
from search.compare.scores import MEAN, Family, compare, scorer_of
from search.compare.statistics import bootstrap
from search.console.documents import PowerDocument
from search.study.plan import RepeatPlan

DIFFERENCES = (0.005, 0.01, 0.02)
"""Differences in mIoU whose power `--dry-run` prints."""


def next_seeds(plans: Sequence[RepeatPlan], precision: float, console: Console) -> int | None:
    """Return the number of seeds to go on with; None if the intervals are narrow enough or no seed can be added.

    The decision looks at the width of the intervals only, not at the differences.
    """
    finished = [finished_repeats(plan) for plan in plans]
    seeds = len(plans[0].repeats)
    if any(len(repeats) < seeds for repeats in finished):
        console.print("not every repeat has finished, so that no seed is added", highlight=False)
        return None
    families = [family(p, [r[s] for s in range(seeds)]) for p, r in zip(plans, finished, strict=True)]
    width = widest(compare(families, range(seeds)))
    enough = width <= precision or seeds >= MAX_AUTO_SEEDS
    text = f"{seeds} seeds: the widest interval of a difference in mIoU is ± {width:.4f}"
    console.print(f"{text}{'' if enough else f', more than {precision:g}; adding a seed'}", highlight=False)
    return None if enough else seeds + 1


def widest(comparison: Mapping[str, Any]) -> float:
    """Return half of the widest interval of a difference in mIoU, of a single family that of its mIoU; in IoU."""
    cells = [d["iou"][MEAN] for key in ("against_baseline", "between_approaches") for d in comparison[key]]
    cells = cells or [f["iou"][MEAN] for f in comparison["families"]]
    return max((math.inf if c["low"] is None else (c["high"] - c["low"]) / 2) for c in cells)


def noise_of(plans: Sequence[RepeatPlan]) -> Noise | None:
    """Estimate the noise of a difference in mIoU from the repeats that have finished.

    Of several families the two whose difference varies most decide.

    Returns:
        None before two families have two finished seeds in common, and for a single test frame.
    """
    if plans[0].settings.data.test < 2:
        return None
    finished = [finished_repeats(plan) if trials_of(plan) else {} for plan in plans]
    pairs = [
        noise_between(*(family(plans[i], [finished[i][s] for s in seeds]) for i in pair))
        for pair in combinations(range(len(plans)), 2)
        if len(seeds := sorted(finished[pair[0]].keys() & finished[pair[1]].keys())) > 1
    ]
    return max(pairs, key=lambda noise: noise.error(max(2, len(plans[0].repeats))), default=None)


def powers(noise: Noise, planned: int) -> list[PowerDocument]:
    """Describe which of DIFFERENCES a number of planned seeds would find."""
    return [
        PowerDocument(
            difference=difference,
            seeds=seeds_needed(difference, noise),
            probability=power(difference, noise, planned) if planned > 1 else None,
        )
        for difference in DIFFERENCES
    ]


def noise_between(one: Family, other: Family) -> Noise:
    """Estimate the noise of the difference in mIoU of two families with the same seeds."""
    scores = scorer_of(one)
    column = len(one.classes) + bool(one.thin)  # the mIoU is behind the classes and the thin mean
    resampled = bootstrap([one.counts, other.counts], scores)
    observed = [scores(each.counts.sum(1))[:, column] for each in (one, other)]
    images = one.confusion.shape[1]
    return read_noise(list(observed[0] - observed[1]), resampled[0][:, column] - resampled[1][:, column], images)
