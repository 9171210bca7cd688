"""The seven classes as one table, and the mapping from Cityscapes ids onto them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

VOID = 255
"""Label of a pixel that neither trains nor counts."""


@dataclass(frozen=True)
class SegClass:
    """One class: its label, its name for people, its key in settings and metrics, its colour and its Cityscapes id."""

    label: int
    name: str
    key: str
    colour: tuple[int, int, int]
    cityscapes_id: int | None


# A search over colours: every two stay apart under deuteranopia, protanopia and tritanopia, by 25 in CIE Lab at least
# (Okabe and Ito's palette gives 16 here), and the thin classes have the brightest; tests/visual_tests/ checks both.
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
"""The classes of few pixels, lost first where a picture is shown small."""
NUM_CLASSES = len(CLASSES)

CITYSCAPES_IDS = range(-1, 34)
CITYSCAPES_VOID = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""The ids that Cityscapes itself leaves out of its evaluation."""


class UnknownIdError(ValueError):
    """A label image holds ids that its table does not name."""

    def __init__(self, ids: Iterable[int]):
        self.ids = sorted(ids)
        super().__init__(f"ids {', '.join(map(str, self.ids))} are not in the table")


def cityscapes_table(void: str) -> dict[int, int]:
    """Map every Cityscapes id (-1..33) to a label.

    Args:
        void: "background" sends every id outside the six classes to 0 (the source's rule); "ignore" sends the ids
            that Cityscapes leaves out of its evaluation to VOID and the rest to 0.
    """
    table = dict.fromkeys(CITYSCAPES_IDS, 0)
    if void == "ignore":
        table |= dict.fromkeys(CITYSCAPES_VOID, VOID)
    return table | {c.cityscapes_id: c.label for c in FOREGROUND if c.cityscapes_id is not None}


def remap(ids: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Translate an id image into labels.

    Args:
        ids: (H, W) integers.
        table: id to label (0-6 or VOID).

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
