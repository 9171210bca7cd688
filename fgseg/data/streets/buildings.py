"""Sky, road, pavements, lawns and houses of the street scenes.  Lengths in metres."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from fgseg.data.streets.canvas import Canvas, Colour, Point, blend, pick, scale, steps
from fgseg.data.streets.classes import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN

FACADES: Sequence[Colour] = (
    (226, 208, 178), (207, 164, 112), (182, 104, 80), (150, 86, 68), (203, 154, 140), (164, 172, 152),
    (126, 142, 158), (216, 194, 156), (232, 228, 218), (156, 154, 150), (190, 178, 164), (112, 92, 84),
)  # fmt: skip
AWNINGS: Sequence[Colour] = ((170, 52, 46), (38, 92, 80), (44, 70, 122), (208, 160, 60), (226, 220, 206))
ASPHALT: Colour = (92, 93, 98)
PAVING: Colour = (158, 152, 144)
KERBSTONE: Colour = (186, 182, 174)
LAWN: Colour = (124, 136, 74)
MARKING: Colour = (226, 226, 220)
GLASS: Colour = (52, 62, 74)
LIT: Colour = (255, 214, 140)
NIGHT: Colour = (16, 18, 34)
SLICES_M = (1.0, 3.0, 4.5, 6.5, 9.0, 13.0, 18.0, 26.0, 38.0, 56.0, 84.0, 130.0, 240.0)
"""Distances between which the ground is drawn in slices, so that haze increases with distance."""
FAR_M = 130.0
"""Distance at which the rows of houses end."""
DETAIL_M = 48.0
"""Distance from which a row of windows is drawn as one stripe, and a car only as outline, glass and lamps."""
STOREY_M = 3.1
"""Height of a storey."""


@dataclass(frozen=True)
class Side:
    """One side of the street, from its kerb outwards; lengths in metres."""

    sign: int
    """-1: left; 1: right."""
    kerb: float
    """x of the kerb."""
    walk: float
    """Width of the pavement."""
    garden: float
    """Depth of the front gardens; 0 if the houses touch the pavement."""
    park: bool
    """Lawn and trees instead of houses."""

    def x(self, outwards: float) -> float:
        """Return the x at `outwards` metres beyond the kerb (negative: on the road)."""
        return self.kerb + self.sign * outwards

    @property
    def face(self) -> str:
        """Direction of the facades, as in `Light.shade`."""
        return "left" if self.sign > 0 else "right"


@dataclass(frozen=True)
class House:
    """One facade along the street: its z from `near` to `far` and its height, in metres."""

    near: float
    far: float
    height: float
    colour: Colour
    style: int


def flat(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> list[Point]:
    """Return the corners of a horizontal rectangle at height `y`."""
    return [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]


def wall(x: float, z0: float, z1: float, y0: float, y1: float) -> list[Point]:
    """Return the corners of an upright rectangle along the street."""
    return [(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)]


def panel(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    """Return the corners of an upright rectangle across the street."""
    return [(x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)]


def draw_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a gradient from zenith to skyline, clouds, and a row of distant blocks."""
    light, rows, columns = canvas.light, 48, 96
    drop = np.clip(np.linspace(0, 1 / canvas.view.horizon, rows), 0, 1)[:, None, None] ** 0.8
    sky = np.array(light.zenith) * (1 - drop) + np.array(light.skyline) * drop
    cloud = np.zeros((rows, columns), dtype=np.float32)
    for cells, strength in (((5, 6), 1.0), ((11, 13), 0.55), ((20, 26), 0.3)):
        noise = Image.fromarray(rng.normal(0, strength, cells).astype(np.float32))
        cloud += np.asarray(noise.resize((columns, rows), Image.Resampling.BICUBIC))
    cover = np.clip((cloud - rng.uniform(-0.3, 1.0)) * 0.7, 0, 0.85)[:, :, None]
    white = np.array(blend(light.skyline, (255, 250, 244), 0.5))
    sun = rng.uniform(0.1, 0.9)
    far = np.hypot(np.linspace(0, 2, columns) - 2 * sun, np.linspace(0, 1, rows)[:, None] - canvas.view.horizon * 0.8)
    sky = sky + (np.exp(-((far / 0.3) ** 2)) * 70)[:, :, None] * np.array(light.sun)
    canvas.backdrop(np.clip(sky * (1 - cover) + white * cover, 0, 255).astype(np.uint8), SKY)
    for x, width, height in zip(steps(-300, 300, 24), rng.uniform(14, 40, 25), rng.uniform(4, 34, 25), strict=True):
        canvas.polygon(panel(x, x + width, 0, height, 260.0), light.shade((140, 140, 150), "near"), BUILDING)


def draw_ground(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side]) -> None:
    """Draw lawn, pavements, kerbs, road, repairs in the asphalt, and lane markings."""
    left, right = sides
    light = canvas.light
    asphalt = scale(ASPHALT, rng.uniform(0.8, 1.15))
    paving = scale(PAVING, rng.uniform(0.85, 1.1))
    for z0, z1 in zip(SLICES_M[-2::-1], SLICES_M[:0:-1], strict=True):
        canvas.polygon(flat(-400, 400, z0, z1), light.shade(LAWN, "up"), TERRAIN)
        canvas.polygon(flat(left.kerb, right.kerb, z0, z1), light.shade(asphalt, "up"), ROAD)
        for side in sides:
            outer = side.walk if side.garden or side.park else side.walk + 12
            canvas.polygon(flat(side.kerb, side.x(outer), z0, z1, 0.12), light.shade(paving, "up"), SIDEWALK)
            canvas.polygon(flat(side.kerb, side.x(0.25), z0, z1, 0.12), light.shade(KERBSTONE, "up"), SIDEWALK)
            canvas.polygon(wall(side.kerb, z0, z1, 0, 0.12), light.shade(scale(KERBSTONE, 0.7), side.face), SIDEWALK)
    for _ in range(5):
        x, z = rng.uniform(left.kerb, right.kerb - 1.5), rng.uniform(4, 40)
        spot = flat(x, x + rng.uniform(0.5, 1.5), z, z + rng.uniform(1, 7))
        canvas.glaze(spot, (20, 20, 24) if rng.random() < 0.6 else (200, 196, 190), 0.13)
    _draw_joints(canvas, rng, sides)
    _draw_markings(canvas, rng, left.kerb, right.kerb)


def _draw_joints(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side]) -> None:
    for side in sides:
        for z in steps(rng.uniform(2, 4), 26, 1.6):
            canvas.glaze(flat(side.x(0.25), side.x(side.walk), z, z + 0.07, 0.12), (40, 36, 34), 0.22)


def _draw_markings(canvas: Canvas, rng: np.random.Generator, left: float, right: float) -> None:
    paint = canvas.light.shade(scale(MARKING, rng.uniform(0.8, 1.0)), "up")
    middle, edge = (left + right) / 2, (right - left) / 2 - 2.3
    for z in steps(rng.uniform(1, 6), 90, 6.0):
        canvas.polygon(flat(middle - 0.07, middle + 0.07, z, z + 3.0), paint, ROAD)
    for side in (-1, 1):
        for z0, z1 in pairwise(SLICES_M[:-2]):
            canvas.polygon(flat(middle + side * edge - 0.06, middle + side * edge + 0.06, z0, z1), paint, ROAD)
    if rng.random() < 0.4:
        z, x = rng.uniform(7, 13), middle + edge / 2
        canvas.polygon(flat(x - 0.12, x + 0.12, z, z + 2.2), paint, ROAD)
        canvas.polygon([(x - 0.45, 0, z + 2.2), (x, 0, z + 4.2), (x + 0.45, 0, z + 2.2)], paint, ROAD)
    if rng.random() < 0.35:
        z = rng.uniform(12, 24)
        for x in steps(left + 0.5, right - 0.5, 1.1):
            canvas.polygon(flat(x, x + 0.55, z, z + 3.0), paint, ROAD)


def plan_houses(rng: np.random.Generator, side: Side) -> list[House]:
    """Plan a row of houses, nearest first, with gaps between some of them."""
    houses: list[House] = []
    z = rng.uniform(-6, 4)
    while z < FAR_M:
        length = rng.uniform(8, 17)
        storeys = int(rng.integers(2, 4)) if side.garden else int(rng.integers(3, 7))
        colour = scale(pick(rng, FACADES), rng.uniform(0.88, 1.06))
        houses.append(House(z, z + length, 1.0 + storeys * STOREY_M, colour, int(rng.integers(4))))
        apart = rng.random() < (0.6 if side.garden else 0.22)
        z += length + (rng.uniform(3, 9) if apart else 0.0)
    return houses


def draw_shadows(canvas: Canvas, side: Side, houses: Sequence[House]) -> None:
    """Draw the shadow of the houses on the sun's side on the ground."""
    base = side.x(side.walk + side.garden)
    mean = sum(h.height for h in houses) / len(houses)
    for house in houses:
        tip = base + (canvas.light.shadow_x - base) * house.height / mean
        slant = abs(tip - base) * 0.35
        corners = [(base, house.near), (tip, house.near + slant), (tip, house.far + slant), (base, house.far)]
        canvas.glaze([(x, 0.0, max(z, 1.0)) for x, z in corners], NIGHT, 0.40)


def draw_houses(canvas: Canvas, rng: np.random.Generator, side: Side, houses: Sequence[House]) -> None:
    """Draw a row of houses, farthest first."""
    light, x = canvas.light, side.x(side.walk + side.garden)
    for house in reversed(houses):
        tone = light.shade(house.colour, side.face)
        z0 = max(house.near, 1.0)
        if house.near > 1.0:
            canvas.polygon(
                panel(x, x + side.sign * 12, 0, house.height, z0), light.shade(house.colour, "near"), BUILDING
            )
        canvas.polygon(wall(x, z0, house.far, 0, house.height), tone, BUILDING)
        _draw_roof(canvas, side, house, x)
        _draw_windows(canvas, rng, side, house)
        canvas.glaze(wall(x, z0, house.far, 0, 1.6), NIGHT, 0.12)
        if not side.garden:
            _draw_shop(canvas, rng, side, house)


def _draw_roof(canvas: Canvas, side: Side, house: House, x: float) -> None:
    light, z0, top = canvas.light, max(house.near, 1.0), house.height
    if house.style in (0, 1):
        slate = light.shade((112, 72, 60) if house.style else (84, 86, 96), side.face)
        inner = x + side.sign * 1.4
        outer, ridge = x + side.sign * 12, top + 2.6
        canvas.polygon(
            [(x, top, z0), (inner, ridge, z0), (outer, ridge, z0), (outer, top, z0)], scale(slate, 0.8), BUILDING
        )
        canvas.polygon(
            [(x, top, z0), (inner, ridge, z0), (inner, ridge, house.far), (x, top, house.far)], slate, BUILDING
        )
    eaves = light.shade(scale(house.colour, 1.12), side.face)
    canvas.polygon(wall(x - side.sign * 0.3, z0, house.far, top - 0.4, top), eaves, BUILDING)


def _draw_windows(canvas: Canvas, rng: np.random.Generator, side: Side, house: House) -> None:
    light, x = canvas.light, side.x(side.walk + side.garden)
    wide, tall = ((1.1, 1.7), (1.5, 1.5), (0.9, 2.0), (2.2, 1.5))[house.style]
    bays = max(2, int((house.far - house.near) / (wide + rng.uniform(0.9, 1.6))))
    step = (house.far - house.near) / bays
    first = 0 if side.garden else 1
    frame = light.shade(blend(house.colour, (245, 242, 235), 0.65), side.face)
    sky = blend(GLASS, light.skyline, 0.35)
    for storey in range(first, int(house.height / STOREY_M)):
        sill = 1.0 + storey * STOREY_M
        if house.near > DETAIL_M:
            canvas.polygon(
                wall(x, house.near + 0.6, house.far - 0.6, sill, sill + tall), blend(sky, house.colour, 0.4), BUILDING
            )
            continue
        for bay, lit in enumerate(rng.random(bays).tolist()):
            z = house.near + step * (bay + 0.5) - wide / 2
            if z < SLICES_M[1]:
                continue
            if z < FAR_M / 3:
                canvas.polygon(wall(x, z - 0.14, z + wide + 0.14, sill - 0.18, sill + tall + 0.12), frame, BUILDING)
            pane = LIT if lit < light.lamps * 0.6 else blend(scale(sky, 0.7), sky, lit)
            canvas.polygon(wall(x, z, z + wide, sill, sill + tall), pane, BUILDING)
            if z < FAR_M / 6:
                canvas.polygon(wall(x, z + wide / 2 - 0.05, z + wide / 2 + 0.05, sill, sill + tall), frame, BUILDING)
    if rng.random() < 0.6 and house.near > SLICES_M[1]:
        pipe = light.shade(scale(house.colour, rng.choice([0.6, 1.25])), side.face)
        canvas.bar(((x, 0.0, house.near + 0.3), (x, house.height, house.near + 0.3)), 0.12, pipe, BUILDING)


def _draw_shop(canvas: Canvas, rng: np.random.Generator, side: Side, house: House) -> None:
    light, x = canvas.light, side.x(side.walk)
    cloth = pick(rng, AWNINGS)
    board, awning, hanging = rng.random(3).tolist()
    z0, z1 = max(house.near + 0.8, 2.0), house.far - 0.8
    if z1 - z0 < STOREY_M:
        return
    glass = LIT if rng.random() < light.lamps else blend(GLASS, light.skyline, 0.2)
    canvas.polygon(wall(x, z0, z1, 0.5, 2.7), light.shade(scale(house.colour, 0.5), side.face), BUILDING)
    if z0 > DETAIL_M:
        return
    for z in steps(z0 + 0.2, z1 - 1.2, 2.0):
        canvas.polygon(wall(x, z, z + 1.75, 0.0 if rng.random() < 0.2 else 0.6, 2.55), glass, BUILDING)
    if board < 0.7:
        canvas.polygon(wall(x, z0, z1, 2.8, 3.4), light.shade(cloth, side.face), BUILDING)
        for z in steps(z0 + 1, min(z1 - 1, z0 + 5), 0.55):
            canvas.polygon(wall(x, z, z + 0.32, 2.95, 3.25), light.shade(MARKING, side.face), BUILDING)
    if awning < 0.5:
        out = x - side.sign * 1.3
        canvas.polygon(
            [(x, 3.0, z0), (x, 3.0, z1), (out, 2.4, z1), (out, 2.4, z0)], light.shade(cloth, "up", out), BUILDING
        )
        canvas.polygon(panel(x, out, 2.3, 2.4, z0), light.shade(scale(cloth, 0.7), "near"), BUILDING)
    if hanging < 0.3:
        z = rng.uniform(z0, z1)
        out = x - side.sign * 0.9
        canvas.polygon(panel(x - side.sign * 0.1, out, 3.6, 4.4, z), light.shade(cloth, "near", out), BUILDING)
        canvas.polygon(
            panel(x - side.sign * 0.3, out + side.sign * 0.2, 3.8, 4.2, z), light.shade(MARKING, "near"), BUILDING
        )
