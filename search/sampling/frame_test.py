"""A pruner that compares a trial with trial 0 frame by frame."""

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

P_VALUE = 0.01
"""Largest p-value at which a trial is stopped.  It is tested after every epoch, so that a trial as good as trial 0 is
stopped with a somewhat larger probability."""
MIN_FRAMES = 6
"""Number of frames below which no trial is stopped: the smallest p-value of five differences is 1/32."""


class FrameTestPruner(BasePruner):
    """Stop a trial whose frames have a lower mIoU than those of trial 0 had after the same epoch.

    One-sided Wilcoxon signed-rank test over the validation frames (Optuna's WilcoxonPruner compares with the best trial
    and takes the epochs for the instances).  The trials' attribute `frame_attribute(epoch)` is the mIoU of each frame.

    Args:
        first_epoch: the first epoch after which a trial may be stopped.
    """

    def __init__(self, first_epoch: int) -> None:
        self._first_epoch = first_epoch

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is stopped; never before trial 0 has trained the same epoch."""
        epoch = trial.last_step
        if epoch is None or epoch < self._first_epoch:
            return False
        name = frame_attribute(epoch)
        own, reference = (np.array(t.user_attrs.get(name, []), float) for t in (trial, study.get_trials(False)[0]))
        if own.shape != reference.shape:
            return False
        differences = (own - reference)[np.isfinite(own - reference)]
        if len(differences) < MIN_FRAMES or not differences.any():
            return False
        from scipy.stats import wilcoxon  # takes a second to import: the settings are checked before

        return bool(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue < P_VALUE)


def frame_attribute(epoch: int) -> str:
    """Return the name of the attribute with the mIoU of each frame after an epoch."""
    return f"frame_miou/{epoch}"
