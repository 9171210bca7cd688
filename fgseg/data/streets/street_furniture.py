"""People, bicycles, bins, posters, bollards and cables of the street scenes.  Lengths in metres."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fgseg.data.streets.buildings import Side, flat, panel
from fgseg.data.streets.canvas import Canvas, Colour, pick, scale, steps
from fgseg.data.streets.classes import BICYCLE, PERSON

CLOTHES: Sequence[Colour] = (
    (52, 60, 84), (150, 48, 44), (70, 96, 74), (204, 176, 120), (40, 40, 46), (120, 132, 150),
    (196, 196, 190), (92, 66, 98),
)  # fmt: skip
SKIN: Sequence[Colour] = ((232, 190, 160), (196, 146, 112), (128, 88, 66), (92, 62, 48))
HAIR: Sequence[Colour] = ((40, 30, 26), (92, 64, 40), (180, 150, 100), (120, 118, 116))
POSTERS: Sequence[Colour] = (
    (226, 88, 60), (46, 120, 168), (240, 196, 72), (64, 140, 104), (232, 226, 214), (196, 70, 120),
)  # fmt: skip
SHADOW: Colour = (10, 11, 20)


def draw_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a walking pedestrian."""
    light, tall, stride = canvas.light, rng.uniform(1.55, 1.9), rng.uniform(0.05, 0.3)
    coat, trousers = (light.shade(CLOTHES[i], "near", x) for i in rng.integers(len(CLOTHES), size=2))
    skin = light.shade(pick(rng, SKIN), "near", x)
    hip, shoulder = tall * 0.5, tall * 0.82
    canvas.glaze(flat(x - 0.3, x + 0.3, z - 0.2, z + 0.3), SHADOW, 0.35)
    canvas.bar(((x - 0.06, hip, z), (x - stride, 0, z)), 0.16, scale(trousers, 0.85), PERSON)
    canvas.bar(((x + 0.06, hip, z), (x + stride, 0, z)), 0.16, trousers, PERSON)
    body = [(x - 0.17, hip - 0.1, z), (x - 0.24, shoulder - 0.06, z), (x - 0.1, shoulder + 0.04, z)]
    body += [(x + 0.1, shoulder + 0.04, z), (x + 0.24, shoulder - 0.06, z), (x + 0.17, hip - 0.1, z)]
    canvas.polygon(body, coat, PERSON)
    for out in (-1, 1):
        canvas.bar(
            ((x + out * 0.24, shoulder - 0.08, z), (x + out * 0.3, hip - 0.02, z)), 0.1, scale(coat, 0.85), PERSON
        )
    canvas.disc((x, tall - 0.12, z), (0.11, 0.14), light.shade(pick(rng, HAIR), "near", x), PERSON)
    canvas.disc((x, tall - 0.16, z), (0.09, 0.11), skin, PERSON)


def draw_bicycle(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a bicycle parked across the pavement."""
    tone = canvas.light.shade(pick(rng, POSTERS), "near", x)
    turn = steps(0, 6.8, np.pi / 6)
    for hub in (x - 0.52, x + 0.52):
        rim = [(hub + 0.33 * math.cos(a), 0.34 + 0.33 * math.sin(a), z) for a in turn]
        for a, b in pairwise(rim):
            canvas.bar((a, b), 0.04, (34, 34, 36), BICYCLE)
    frame = [(x - 0.52, 0.34), (x - 0.2, 0.85), (x + 0.4, 0.85), (x, 0.34), (x - 0.2, 0.85)]
    for (ax, ay), (bx, by) in pairwise(frame):
        canvas.bar(((ax, ay, z), (bx, by, z)), 0.05, tone, BICYCLE)
    canvas.bar(((x + 0.52, 0.34, z), (x + 0.38, 1.02, z)), 0.05, tone, BICYCLE)
    canvas.bar(((x - 0.3, 0.92, z), (x - 0.1, 0.92, z)), 0.07, (30, 30, 32), BICYCLE)


def draw_bin(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a litter bin or a letter box: a small block in a strong colour."""
    tone = pick(rng, ((60, 88, 66), (88, 90, 94), (214, 168, 40), (170, 40, 38)))
    light, high = canvas.light, rng.uniform(0.8, 1.25)
    canvas.polygon(panel(x - 0.28, x + 0.28, 0.1, high, z), light.shade(tone, "near", x))
    canvas.polygon(panel(x - 0.32, x + 0.32, high, high + 0.1, z), light.shade(scale(tone, 0.7), "near", x))
    canvas.polygon(panel(x - 0.16, x + 0.16, high - 0.3, high - 0.2, z), light.shade(scale(tone, 0.3), "near", x))


def draw_poster(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw an advertising panel: as bright as a traffic sign, but OTHER."""
    light = canvas.light
    back, logo = (light.shade(POSTERS[i], "near", x) for i in rng.choice(len(POSTERS), 2, replace=False))
    canvas.polygon(panel(x - 0.2, x + 0.2, 0.1, 0.6, z), light.shade((70, 72, 76), "near", x))
    canvas.polygon(panel(x - 0.68, x + 0.68, 0.55, 2.4, z), light.shade((70, 72, 76), "near", x))
    canvas.polygon(panel(x - 0.6, x + 0.6, 0.63, 2.32, z), scale(back, 1.1))
    canvas.disc((x + rng.uniform(-0.2, 0.2), rng.uniform(1.4, 1.9), z), (0.34, 0.34), logo)
    canvas.polygon(panel(x - 0.45, x + 0.45, 0.8, 0.95, z), logo)
    canvas.polygon(panel(x - 0.45, x + 0.1, 1.02, 1.1, z), logo)


def draw_bollard(canvas: Canvas, x: float, z: float) -> None:
    """Draw a low, thick stone post, which is OTHER and not a pole."""
    tone = canvas.light.shade((128, 122, 114), "near", x)
    canvas.polygon(panel(x - 0.14, x + 0.14, 0.1, 0.7, z), tone)
    canvas.disc((x, 0.7, z), (0.14, 0.1), scale(tone, 1.12))


def draw_cables(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side]) -> None:
    """Draw wires from facade to facade, sagging in the middle."""
    left, right = (side.x(side.walk) for side in sides)
    for z in rng.uniform(12, 60, 2).tolist():
        high, low = rng.uniform(7, 9), rng.uniform(6, 6.8)
        knots = [(left + (right - left) * t, high + (low - high) * 4 * t * (1 - t), z) for t in steps(0, 1.01, 1 / 6)]
        for ends in pairwise(knots):
            canvas.wire(ends, (40, 40, 46), 0.7)
