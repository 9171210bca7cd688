"""Procedural street scenes with exact labels: the embedded default dataset, which needs no download.

A scene is composed here, in world metres, and drawn from back to front by the `streets_*` files beside this one.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np

from fgseg.data.streets import buildings, roadside, street_furniture
from fgseg.data.streets.buildings import Side
from fgseg.data.streets.canvas import Canvas, Light, View, steps
from fgseg.data.streets.cars import draw_car
from fgseg.labels import FOREGROUND

RELEASE = 1
"""Raised whenever the same (seed, index) would render differently; part of the cache key."""
COMPLETE_EVERY = 4
"""Each frame whose index is a multiple of this shows all six foreground classes."""
VISIBLE_PX = 14
"""How many pixels of a class count as showing it, at the reference size."""
REFERENCE_SIZE = (128, 256)
PRESENCE = {"fence": 0.7, "car": 0.95, "vegetation": 0.95, "pole": 0.9, "traffic_sign": 0.85, "traffic_light": 0.75}
"""How often an ordinary frame is given each class; signs and lights bring poles of their own."""

Thing = tuple[float, Callable[[], None]]
"""Distance, and how to draw what stands there."""


def render(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    The same (seed, index) gives the same bytes in any process and order (under one release of Pillow and NumPy), and
    at another size the same scene, resampled.

    Args:
        seed: of the dataset, >= 0.
        index: of the frame, >= 0; every multiple of four shows all six foreground classes, at least 12 pixels of
            each at 128x256.
        height, width: of the picture; composed for twice as wide as high, other shapes crop or extend the sides.

    Returns:
        (H, W, 3) uint8 RGB picture; (H, W) uint8 labels 0..6, no void.

    Raises:
        ValueError: seed or index is negative.
    """
    if index % COMPLETE_EVERY:
        return _draw(seed, index, 0, height, width)
    for attempt in count():
        reference = _draw(seed, index, attempt, *REFERENCE_SIZE)
        if _shows_all(reference[1]):
            break
    return reference if (height, width) == REFERENCE_SIZE else _draw(seed, index, attempt, height, width)


def _shows_all(labels: np.ndarray) -> bool:
    counts = np.bincount(labels.ravel(), minlength=len(FOREGROUND) + 1)
    return all(counts[c.label] >= VISIBLE_PX for c in FOREGROUND)


def _draw(seed: int, index: int, attempt: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, index, attempt))
    given = {key: index % COMPLETE_EVERY == 0 or rng.random() < chance for key, chance in PRESENCE.items()}
    sides = _plan_sides(rng)
    light = _plan_light(rng, sides)
    view = View(rng.uniform(1.2, 1.45), rng.uniform(0.45, 0.54), rng.uniform(-0.15, 0.15), rng.uniform(1.45, 1.8))
    canvas = Canvas(height, width, view, light)
    _draw_town(canvas, rng, sides)
    things = _plan_things(canvas, rng, sides, given)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    return canvas.finish(rng)


def _plan_sides(rng: np.random.Generator) -> tuple[Side, Side]:
    half, middle = rng.uniform(5.0, 6.2), rng.uniform(-2.4, -1.4)
    sides = []
    for sign in (-1, 1):
        kind = rng.random()
        garden = rng.uniform(3, 6) if 0.5 <= kind < 0.8 else 0.0
        sides.append(Side(sign, middle + sign * half, rng.uniform(2.6, 4.2), garden, kind >= 0.8))
    return sides[0], sides[1]


def _plan_light(rng: np.random.Generator, sides: tuple[Side, Side]) -> Light:
    sun_side = int(rng.choice((-1, 1)))
    edge, none = rng.uniform(sides[0].kerb - 3, sides[1].kerb + 3), sun_side * math.inf
    hours = (
        Light((82, 138, 206), (204, 222, 234), (0.74, 0.69, 0.58), (0.48, 0.53, 0.62), sun_side, edge, 130, 0.0),
        Light((126, 160, 206), (250, 224, 206), (0.74, 0.6, 0.48), (0.5, 0.5, 0.58), sun_side, edge, 75, 0.0),
        Light((96, 130, 184), (252, 206, 150), (0.98, 0.7, 0.4), (0.42, 0.41, 0.5), sun_side, edge, 95, 0.12),
        Light((168, 178, 190), (218, 222, 224), (0.1, 0.1, 0.1), (0.82, 0.83, 0.85), sun_side, none, 85, 0.1),
        Light((52, 66, 120), (236, 160, 130), (0.12, 0.07, 0.08), (0.5, 0.46, 0.58), sun_side, none, 110, 0.6),
    )
    # Noon, morning, evening, an overcast day, dusk.
    return hours[rng.choice(len(hours), p=(0.32, 0.18, 0.22, 0.16, 0.12))]


def _draw_town(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side]) -> None:
    rows = [buildings.plan_houses(rng, side) for side in sides]
    buildings.draw_sky(canvas, rng)
    buildings.draw_ground(canvas, rng, sides)
    for side, houses in zip(sides, rows, strict=True):  # every shadow lies below every house
        if side.sign == canvas.light.sun_side and not side.park and math.isfinite(canvas.light.shadow_x):
            buildings.draw_shadows(canvas, side, houses)
    for side, houses in zip(sides, rows, strict=True):
        if not side.park:
            buildings.draw_houses(canvas, rng, side, houses)
    street_furniture.draw_cables(canvas, rng, sides)


def _plan_things(
    canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side], given: dict[str, bool]
) -> list[Thing]:
    things: list[Thing] = []
    state = int(rng.integers(3))
    junction = rng.uniform(10, 20)
    for side in sides:
        if given["vegetation"]:
            things += _plan_plants(canvas, rng, side)
        if given["fence"] and (side.garden or side.park or rng.random() < 0.4):
            things += _plan_fence(canvas, rng, side)
        if given["pole"]:
            for z in steps(rng.uniform(8, 16), 80, rng.uniform(17, 26)):
                things.append((z, partial(roadside.draw_lamp_post, canvas, rng, side, z)))
        if given["traffic_sign"]:
            for z in rng.uniform(7, 26, int(rng.integers(1, 4))).tolist():
                back = side.sign < 0 and rng.random() < 0.25
                things.append((z, partial(roadside.draw_sign, canvas, rng, side.x(rng.uniform(0.4, 0.9)), z, back)))
        if given["traffic_light"]:
            z = junction + rng.uniform(-1, 1)
            things.append((z, partial(roadside.draw_traffic_light, canvas, rng, side, z, state)))
        things += _plan_people(canvas, rng, side)
    if given["car"]:
        things += _plan_cars(canvas, rng, sides, junction)
    return things


def _plan_plants(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[Thing]:
    things: list[Thing] = []
    if rng.random() < 0.75:
        apart, row = rng.uniform(9, 16), rng.uniform(0.9, 1.4)
        for z in steps(rng.uniform(7, 20), 75, apart):
            things.append((z, partial(roadside.draw_tree, canvas, rng, side.x(row), z)))
    if side.park:
        for z, out in zip(rng.uniform(12, 90, 14).tolist(), rng.uniform(4, 26, 14).tolist(), strict=True):
            things.append((z, partial(roadside.draw_tree, canvas, rng, side.x(side.walk + out), z)))
    if side.garden:
        for z, out in zip(rng.uniform(8, 50, 5).tolist(), rng.uniform(1.0, side.garden, 5).tolist(), strict=True):
            things.append((z, partial(roadside.draw_bush, canvas, rng, side.x(side.walk + out), z)))
        if rng.random() < 0.5:
            z, length = rng.uniform(9, 24), rng.uniform(6, 14)
            things.append((z + length, partial(roadside.draw_hedge, canvas, rng, side.x(side.walk + 0.4), z, length)))
    return things


def _plan_fence(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[Thing]:
    open_ground = bool(side.garden) or side.park
    style = str(rng.choice(("pickets", "railings", "mesh") if open_ground else ("railings", "rails")))
    height = rng.uniform(1.1, 1.7) if open_ground else rng.uniform(0.9, 1.1)
    x = side.x(side.walk + 0.15 if open_ground else 0.3)
    near = rng.uniform(6, 12)
    things: list[Thing] = []
    for z in steps(near, near + rng.uniform(10, 26), 2.0):
        things.append((z + 1, partial(roadside.draw_fence, canvas, (x, z), (x, z + 2.0), style, height)))
    return things


def _plan_people(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[Thing]:
    things: list[Thing] = []
    for _ in range(int(rng.integers(0, 5))):
        z, x = rng.uniform(7, 34), side.x(rng.uniform(0.8, side.walk - 0.3))
        things.append((z, partial(street_furniture.draw_person, canvas, rng, x, z)))
    for draw, chance in (
        (street_furniture.draw_bicycle, 0.35),
        (street_furniture.draw_bin, 0.5),
        (street_furniture.draw_poster, 0.35),
    ):
        if rng.random() < chance:
            z = rng.uniform(9, 28)
            things.append((z, partial(draw, canvas, rng, side.x(rng.uniform(0.7, 1.6)), z)))
    if rng.random() < 0.25:
        for z in steps(rng.uniform(7, 10), 24, 2.2):
            things.append((z, partial(street_furniture.draw_bollard, canvas, side.x(0.35), z)))
    return things


def _plan_cars(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side], junction: float) -> list[Thing]:
    things: list[Thing] = []
    for side in sides:
        heading, taken = ("away" if side.sign > 0 else "oncoming"), rng.uniform(0.25, 0.8)
        for z in steps(rng.uniform(6, 13), 62, 6.2):
            if rng.random() < taken:
                things.append((z, partial(draw_car, canvas, rng, side.x(-1.15), z + rng.uniform(-0.4, 0.4), heading)))
    middle = (sides[0].kerb + sides[1].kerb) / 2
    if rng.random() < 0.7:
        z = rng.uniform(9, 40)
        things.append((z, partial(draw_car, canvas, rng, middle + 1.7, z, "away")))
    for z in rng.uniform(10, 60, int(rng.integers(0, 3))).tolist():
        things.append((z, partial(draw_car, canvas, rng, middle - 1.7, z, "oncoming")))
    if rng.random() < 0.15:
        z = junction + 6
        things.append((z, partial(draw_car, canvas, rng, middle + rng.uniform(-4, 3), z, "crossing")))
    return things
