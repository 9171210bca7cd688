"""Scores, ranks and differences of families on the test split, as JSON types, computed from pixel counts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from search.compare.statistics import (
    ALPHA,
    RESAMPLES,
    Array,
    Estimate,
    bootstrap,
    holm,
    mean_over_seeds,
    paired_difference,
    ranks,
)
from search.study.space import BASELINE

MEAN = "mean"
"""Last row of every table, below the classes; the mean of IoU is the mIoU."""
THIN_MEAN = "thin_mean"
"""Row above the last one, the mean over the thin classes; only if there are thin classes."""
MEASURES = ("iou", "boundary_iou")


@dataclass(frozen=True)
class Family:
    """Pixel counts of one family's repeats."""

    space: str
    title: str
    study: str
    point: dict[str, float | int]
    classes: tuple[str, ...]
    """Keys of the F foreground classes, in the order of their labels, which are the last F of C."""
    confusion: Array
    """(S, N, C, C) pixel counts by seed and image, rows truth."""
    boundary: Array
    """(S, N, C, 2) pixel counts by seed and image: in both rims, in either."""
    thin: tuple[str, ...] = ()
    """Keys of the thin classes."""

    @property
    def counts(self) -> Array:
        """All counts of each image: (S, N, C * C + C * 2) float64, first those of the confusion matrix."""
        seeds, images = self.confusion.shape[:2]
        parts = (self.confusion, self.boundary)
        return np.concatenate([part.reshape(seeds, images, -1) for part in parts], -1).astype(float)


@dataclass(frozen=True)
class Scorer:
    """Computes scores from sums of counts."""

    num_classes: int
    """C."""
    occurs: tuple[bool, ...]
    """Whether a test frame holds the class, for each of the F foreground classes; others have no score."""
    thin: tuple[bool, ...] = ()
    """Whether the class is thin, for each of the F foreground classes; empty if none is."""

    def __call__(self, sums: Array) -> Array:
        """Compute the scores.

        Args:
            sums: (..., C * C + C * 2) as in `Family.counts`, of one image or many.

        Returns:
            (..., 2 * (F + M)): IoU of the foreground classes and M means, that of the thin classes, if any, and of all;
            then the same of boundary IoU. NaN for a class that no frame holds, or absent from truth and prediction of
            these; the means leave it out.
        """
        number, shape = self.num_classes, sums.shape[:-1]
        confusion = sums[..., : number**2].reshape(*shape, number, number)
        boundary = sums[..., number**2 :].reshape(*shape, number, 2)
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        with np.errstate(invalid="ignore"):
            iou = hits / (confusion.sum(-1) + confusion.sum(-2) - hits)
            rims = boundary[..., 0] / boundary[..., 1]
        first = number - len(self.occurs)
        scored = [np.where(self.occurs, each[..., first:], np.nan) for each in (iou, rims)]
        return np.concatenate([part for each in scored for part in (each, *self.means(each))], -1)

    def means(self, classes: Array) -> list[Array]:
        """Return the mean (..., 1) of the thin classes, if any, and of all, from the scores (..., F) of the classes."""
        thin = [mean_of_known(np.where(self.thin, classes, np.nan))] if self.thin else []
        return [*thin, mean_of_known(classes)]


def scorer_of(family: Family) -> Scorer:
    """Return the scorer of all families that were evaluated on the same frames as this one."""
    truth = family.confusion[0].sum((0, 2))
    occurs = tuple((truth[len(truth) - len(family.classes) :] > 0).tolist())
    return Scorer(len(truth), occurs, tuple(key in family.thin for key in family.classes) if family.thin else ())


def mean_of_known(classes: Array) -> Array:
    """Return the mean (..., 1) of the scores (..., F) that are not NaN; NaN if all are."""
    known = ~np.isnan(classes)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(classes).sum(-1, keepdims=True) / known.sum(-1, keepdims=True)


def compare(
    families: Sequence[Family], seeds: Sequence[int], resamples: int = RESAMPLES, checkpoint: Family | None = None
) -> dict[str, Any]:
    """Compare families: scores and ranks of each, and all differences, as JSON types.

    Args:
        families: evaluated with the same S seeds, in the same order, on the same images.
        seeds: the S offsets added to `train.seed`.
        resamples: number of bootstrap resamples.
        checkpoint: the untrained checkpoint from which all families start, its counts repeated S times; it has no rank
            and changes no other value.

    Raises:
        ValueError: numbers of seeds or images differ between families.
    """
    compared = [*families, *([checkpoint] if checkpoint else [])]
    shapes = {family.confusion.shape[:2] for family in compared}
    if len(shapes) > 1:
        raise ValueError(f"families were evaluated on different seeds or images: {sorted(shapes)}")
    means = (THIN_MEAN, MEAN) if families[0].thin else (MEAN,)
    rows, scores = (*families[0].classes, *means), scorer_of(families[0])
    by_seed = [scores(family.counts.sum(1)) for family in compared]
    resampled = bootstrap([family.counts for family in compared], scores, resamples)
    names, images = [family.space for family in compared], int(families[0].confusion.shape[1])

    def difference(first: int, second: int) -> dict[str, Any]:
        observed, drawn = (each[first] - each[second] for each in (by_seed, resampled))
        estimates = [paired_difference(*columns, images) for columns in zip(observed.T, drawn.T, strict=True)]
        return {"approach": names[first], "reference": names[second], **table_of(rows, estimates)}

    reference = names.index(BASELINE) if BASELINE in names else None
    approaches = [i for i in range(len(families)) if i != reference]
    against = [] if reference is None else [difference(i, reference) for i in approaches]
    between = [difference(second, first) for first, second in combinations(approaches, 2)]
    last = len(families)
    over = [difference(i, last) for i in range(last)] if checkpoint else []
    untrained = (
        {"checkpoint": scores_table(rows, by_seed[last]), "against_checkpoint": corrected(rows, over)}
        if checkpoint
        else {}
    )
    return {
        "seeds": list(seeds),
        "images": images,
        "resamples": resamples,
        "families": describe_families(families, rows, by_seed[: len(families)]),
        "against_baseline": corrected(rows, against),
        "between_approaches": corrected(rows, between),
        **untrained,
    }


def describe_families(
    families: Sequence[Family], rows: Sequence[str], by_seed: Sequence[Array]
) -> list[dict[str, Any]]:
    """Return name, point, scores and ranks of each family, from its scores (S, 2 * rows)."""
    tables = [scores_table(rows, each) for each in by_seed]
    for measure in MEASURES:
        for row in rows:
            places = ranks([table[measure][row]["value"] for table in tables])
            for table, place in zip(tables, places, strict=True):
                table[measure][row]["rank"] = place
    return [
        {"space": f.space, "title": f.title, "study": f.study, "point": f.point, **table}
        for f, table in zip(families, tables, strict=True)
    ]


def scores_table(rows: Sequence[str], by_seed: Array) -> dict[str, Any]:
    """Return mean, interval and the values by seed of every measure and row, from scores (S, 2 * rows)."""
    estimates = [mean_over_seeds(column) for column in by_seed.T]
    table = table_of(rows, estimates, drop="p")
    for i, (measure, row) in enumerate((m, r) for m in MEASURES for r in rows):
        table[measure][row]["by_seed"] = [plain(value) for value in by_seed[:, i]]
    return table


def table_of(rows: Sequence[str], estimates: Sequence[Estimate], drop: str = "") -> dict[str, Any]:
    """Arrange the estimates of every measure by row, without the field `drop`."""
    cells = iter({k: plain(v) for k, v in asdict(estimate).items() if k != drop} for estimate in estimates)
    return {measure: {row: next(cells) for row in rows} for measure in MEASURES}


def corrected(rows: Sequence[str], differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each difference the p-value corrected over the differences of its row, and the verdict; in place."""
    for measure in MEASURES:
        for row in rows:
            cells = [difference[measure][row] for difference in differences]
            for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
                cell |= {"p_holm": p, "verdict": verdict(cell["value"], p)}
    return differences


def verdict(value: float | None, p: float | None) -> str:
    """Return the verdict on a difference: absent, unknown, not distinguishable, higher or lower."""
    if value is None:
        return "absent"
    if p is None:
        return "unknown"
    return "not distinguishable" if p >= ALPHA else ("higher" if value > 0 else "lower")


def plain(value: Any) -> Any:
    """Convert a number for JSON; NaN becomes None."""
    return None if value is None or math.isnan(value) else float(value)
