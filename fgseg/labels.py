"""The table of the seven classes, and the mapping from data-set ids to labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

VOID = 255
"""Label of a pixel that is excluded from loss and metrics."""


@dataclass(frozen=True)
class SegClass:
    """One class."""

    label: int
    """0-6."""
    name: str
    """Name in texts."""
    key: str
    """Name in settings and metrics."""
    colour: tuple[int, int, int]
    """RGB in [0, 255]."""
    cityscapes_id: int | None


# Colours found by a search: under deuteranopia, protanopia and tritanopia every two differ by at least 25 in CIE Lab
# (16 for the palette of Okabe and Ito), and the thin classes are the brightest. tests/visual_tests/ checks both.
CLASSES = (
    SegClass(0, "background", "background", (64, 64, 64), None),
    SegClass(1, "fence", "fence", (255, 166, 196), 13),
    SegClass(2, "car", "car", (20, 80, 210), 26),
    SegClass(3, "vegetation", "vegetation", (16, 140, 84), 21),
    SegClass(4, "pole", "pole", (146, 186, 255), 17),
    SegClass(5, "traffic sign", "traffic_sign", (255, 244, 48), 20),
    SegClass(6, "traffic light", "traffic_light", (244, 116, 20), 19),
)
FOREGROUND = CLASSES[1:]
THIN = tuple(c for c in FOREGROUND if c.key in ("fence", "pole", "traffic_sign", "traffic_light"))
"""Classes of thin objects, which cover few pixels and need bright colours in small figures."""
NUM_CLASSES = len(CLASSES)

CITYSCAPES_IDS = range(-1, 34)
CITYSCAPES_VOID = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids that the evaluation of Cityscapes excludes."""


class UnknownIdError(ValueError):
    """A label image has ids that are not in the table; `ids` lists them in ascending order."""

    def __init__(self, ids: Iterable[int]):
        self.ids = sorted(ids)
        super().__init__(f"ids {', '.join(map(str, self.ids))} are not in the table")


def cityscapes_table(void: str) -> dict[int, int]:
    """Return the label (0-6 or VOID) of every Cityscapes id (-1..33).

    Args:
        void: "background" maps every id outside the six classes to 0, as in the source; "ignore" maps the ids that the
            evaluation of Cityscapes excludes to VOID and the rest to 0.
    """
    table = dict.fromkeys(CITYSCAPES_IDS, 0)
    if void == "ignore":
        table |= dict.fromkeys(CITYSCAPES_VOID, VOID)
    return table | {c.cityscapes_id: c.label for c in FOREGROUND if c.cityscapes_id is not None}


def remap(ids: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Map the ids of a label image to labels.

    Args:
        ids: (H, W) of any integer type.
        table: label (0-6 or VOID) of each id.

    Returns:
        (H, W) uint8, 0-6 or VOID.

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
