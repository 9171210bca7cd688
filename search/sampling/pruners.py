"""Build Optuna's pruners by the names in SearchConfig."""

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from search.sampling.frame_test import FrameTestPruner
from search.sampling.screening import FixedEpochsPruner, build_screening

ASHA_REDUCTION = 3
"""Reduction factor of successive halving: at each rung about one trial in ASHA_REDUCTION continues."""


def build_pruner(name: str, trials: int, epochs: int) -> BasePruner:
    """Build a pruner by name.

    No trial is pruned before a quarter of its epochs, since early epochs mislead between losses.

    Args:
        name: `none`, `median`, `wilcoxon` (see FrameTestPruner), `first-epochs` or `short-full` (see Screening), or
            `asha`, whose first rung is a quarter of the epochs and whose later rungs are each ASHA_REDUCTION times the
            previous one (15 epochs: 3 and 9; 5 epochs: 1 and 3), or `hyperband`: asha, begun later by some trials.
        trials: budget of the study.
        epochs: full length of a trial.
    """
    quarter = max(1, epochs // 4)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=quarter, reduction_factor=ASHA_REDUCTION)
    if name == "hyperband":
        return HyperbandPruner(min_resource=quarter, max_resource=epochs, reduction_factor=ASHA_REDUCTION)
    if name == "wilcoxon":
        return FrameTestPruner(quarter)
    if screening := build_screening(name, epochs):
        return FixedEpochsPruner(screening.epochs)
    if name == "median":
        return MedianPruner(n_startup_trials=min(4, trials // 2), n_warmup_steps=quarter)
    return NopPruner()
