"""Label sets, and the mapping from the ids of a data set to labels."""

from collections.abc import Iterable, Mapping

import numpy as np

from fgseg.config.label_sets import VOID, LabelSet, SegClass, display_name, key_of, label_set_of, load_label_set

__all__ = [
    "VOID",
    "LabelSet",
    "SegClass",
    "UnknownIdError",
    "cityscapes_table",
    "display_name",
    "key_of",
    "label_set_of",
    "load_label_set",
    "remap",
]

CITYSCAPES_IDS = range(-1, 34)
CITYSCAPES_VOID = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids that the evaluation of Cityscapes excludes."""


class UnknownIdError(ValueError):
    """A label image has ids that are not in the table; `ids` lists them in ascending order."""

    def __init__(self, ids: Iterable[int]):
        self.ids = sorted(ids)
        super().__init__(f"ids {', '.join(map(str, self.ids))} are not in the table")


def cityscapes_table(classes: LabelSet, void: str) -> dict[int, int]:
    """Return the label (a class's, or VOID) of every Cityscapes id (-1..33).

    Args:
        classes: the label set; in a set without background every id without a class is VOID.
        void: "background" maps every id without a class to the background, as in the source; "ignore" maps the ids
            that the evaluation of Cityscapes excludes to VOID and the rest to the background.
    """
    table = dict.fromkeys(CITYSCAPES_IDS, classes.rest)
    if void == "ignore":
        table |= dict.fromkeys(CITYSCAPES_VOID, VOID)
    return table | {i: c.label for c in classes.classes for i in c.ids}


def remap(ids: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Map the ids of a label image to labels.

    Args:
        ids: (H, W) of any integer type.
        table: label (a class's, or VOID) of each id.

    Returns:
        (H, W) uint8 labels.

    Raises:
        UnknownIdError: an id of the image is not in the table.
    """
    low, high = min(table), max(table)
    known = np.zeros(high - low + 1, dtype=bool)
    lookup = np.zeros(high - low + 1, dtype=np.uint8)
    for number, label in table.items():
        known[number - low], lookup[number - low] = True, label
    index = ids.astype(np.int64) - low
    outside = (index < 0) | (index > high - low)
    unknown = outside | ~known[np.where(outside, 0, index)]
    if unknown.any():
        raise UnknownIdError(int(i) for i in np.unique(ids[unknown]))
    return lookup[index]
