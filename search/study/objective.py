"""What a search maximises: one metric of the validation, or two."""

import math
from collections.abc import Sequence

from fgseg.config.errors import ConfigError, check_name
from fgseg.labels import LabelSet, SegClass, display_name
from fgseg.results import EpochResult

MIOU = "val/miou"
THIN_MIOU = "val/thin_miou"
DEFAULT = (MIOU,)
"""What a search maximises unless `--objective` names something else."""
CLASS = "val/iou/"
"""Prefix of the IoU of a class."""
BOUNDARY = "val/boundary/"
"""Prefix of the boundary IoU of a class."""
NAMES = {MIOU: "mIoU", THIN_MIOU: "thin mIoU"}
"""Names in texts of the metrics that are no class's."""


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas."""
    return tuple(name.strip() for name in text.split(","))


def metric_names(classes: LabelSet) -> list[str]:
    """Return the metrics that a search can maximise."""
    thin = [THIN_MIOU] if classes.thin else []
    return [MIOU, *thin, *(f"{prefix}{c.key}" for prefix in (CLASS, BOUNDARY) for c in classes.foreground)]


def classes_of(metric: str, classes: LabelSet) -> tuple[SegClass, ...]:
    """Return the classes that a metric measures, or of which it is the mean."""
    means = {MIOU: classes.foreground, THIN_MIOU: classes.thin}
    return tuple(means.get(metric) or [c for c in classes.foreground if c.key == metric.rpartition("/")[2]])


def check_objectives(objectives: Sequence[str], classes: LabelSet, pruner: str) -> None:
    """Raise ConfigError for an unknown metric, more than two, a repeated one, or a pruner that does not take them."""
    for name in objectives:
        check_name(name, metric_names(classes), f"--objective: no metric {name!r} of the validation")
    if len(objectives) > 2 or len(set(objectives)) < len(objectives):
        raise ConfigError(f"--objective: got {','.join(objectives)}, must be one metric or two different ones")
    if len(objectives) == 2 and pruner != "none":
        raise ConfigError(f"--pruner {pruner}: trials with two objectives cannot be pruned; give --pruner none")
    if pruner == "wilcoxon" and tuple(objectives) != DEFAULT:
        raise ConfigError(
            f"--pruner wilcoxon: compares the mIoU of frames, got --objective {objectives[0]}; choose another pruner"
        )


def value_of(epoch: EpochResult, metric: str) -> float:
    """Return the value of a metric after an epoch, in [0, 1]; NaN if the validation has no such class."""
    return epoch.metrics().get(metric, math.nan)


def objective_name(metric: str) -> str:
    """Return the name of a metric in texts, such as "mIoU" or "IoU of pole"."""
    if metric in NAMES:
        return NAMES[metric]
    kind = "boundary IoU" if metric.startswith(BOUNDARY) else "IoU"
    return f"{kind} of {display_name(metric.rpartition('/')[2])}"
