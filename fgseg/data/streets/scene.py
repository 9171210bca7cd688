"""Procedural street scenes with exact labels: the default data set, which needs no download.

This module places the objects of a scene, in metres; the other modules of the package draw them, from back to front.
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
from fgseg.data.streets.classes import CAR, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION

RELEASE = 1
"""Version of the rendering, part of the cache key; raise it whenever the same (seed, index) renders differently."""
COMPLETE_EVERY = 4
"""Frames whose index is a multiple of this show every class of SMALL."""
SMALL = (FENCE, CAR, VEGETATION, POLE, TRAFFIC_SIGN, TRAFFIC_LIGHT)
"""Classes that a scene may lack, or of which it may show too few pixels."""
VISIBLE_PX = 14
"""Pixels of a class, at least, with which it is visible at REFERENCE_SIZE."""
REFERENCE_SIZE = (128, 256)
"""Height and width in pixels at which visibility is checked."""
PRESENCE = {"fence": 0.7, "car": 0.95, "vegetation": 0.95, "pole": 0.9, "traffic_sign": 0.85, "traffic_light": 0.75}
"""Probability that an ordinary frame is given a class; signs and lights have poles, so poles are more frequent."""

DrawCall = tuple[float, Callable[[], None]]
"""Distance of an object in metres, and the call that draws it."""


def render(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    The same (seed, index) gives the same bytes in any process and order, under one version of Pillow and NumPy; at
    another size it gives the same scene.

    Args:
        seed: seed of the data set, >= 0.
        index: index of the frame, >= 0; every multiple of COMPLETE_EVERY shows every class of SMALL, with at least
            VISIBLE_PX pixels each at REFERENCE_SIZE.
        height, width: size in pixels; composed for a width of twice the height, other ratios crop or extend the sides.

    Returns:
        (H, W, 3) uint8 RGB image; (H, W) uint8 ids of `fgseg.data.streets.classes`.

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


def _shows_all(ids: np.ndarray) -> bool:
    """Return whether ids (H, W) uint8 hold at least VISIBLE_PX pixels of every class of SMALL."""
    counts = np.bincount(ids.ravel(), minlength=max(SMALL) + 1)
    return all(counts[number] >= VISIBLE_PX for number in SMALL)


def _draw(seed: int, index: int, attempt: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one attempt at a scene: (H, W, 3) uint8 RGB and (H, W) uint8 ids."""
    rng = np.random.default_rng((seed, index, attempt))
    given = {key: index % COMPLETE_EVERY == 0 or rng.random() < chance for key, chance in PRESENCE.items()}
    sides = _plan_sides(rng)
    light = _plan_light(rng, sides)
    view = View(rng.uniform(1.2, 1.45), rng.uniform(0.45, 0.54), rng.uniform(-0.15, 0.15), rng.uniform(1.45, 1.8))
    canvas = Canvas(height, width, view, light)
    _draw_town(canvas, rng, sides)
    objects = _plan_objects(canvas, rng, sides, given)
    for _, draw in sorted(objects, key=lambda pair: -pair[0]):
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
    # Probabilities of noon, morning, evening, an overcast day and dusk.
    return hours[rng.choice(len(hours), p=(0.32, 0.18, 0.22, 0.16, 0.12))]


def _draw_town(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side]) -> None:
    rows = [buildings.plan_houses(rng, side) for side in sides]
    buildings.draw_sky(canvas, rng)
    buildings.draw_ground(canvas, rng, sides)
    for side, houses in zip(sides, rows, strict=True):  # all shadows first, so that houses cover them
        if side.sign == canvas.light.sun_side and not side.park and math.isfinite(canvas.light.shadow_x):
            buildings.draw_shadows(canvas, side, houses)
    for side, houses in zip(sides, rows, strict=True):
        if not side.park:
            buildings.draw_houses(canvas, rng, side, houses)
    street_furniture.draw_cables(canvas, rng, sides)


def _plan_objects(
    canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side], given: dict[str, bool]
) -> list[DrawCall]:
    objects: list[DrawCall] = []
    state = int(rng.integers(3))
    junction = rng.uniform(10, 20)
    for side in sides:
        if given["vegetation"]:
            objects += _plan_plants(canvas, rng, side)
        if given["fence"] and (side.garden or side.park or rng.random() < 0.4):
            objects += _plan_fence(canvas, rng, side)
        if given["pole"]:
            for z in steps(rng.uniform(8, 16), 80, rng.uniform(17, 26)):
                objects.append((z, partial(roadside.draw_lamp_post, canvas, rng, side, z)))
        if given["traffic_sign"]:
            for z in rng.uniform(7, 26, int(rng.integers(1, 4))).tolist():
                back = side.sign < 0 and rng.random() < 0.25
                objects.append((z, partial(roadside.draw_sign, canvas, rng, side.x(rng.uniform(0.4, 0.9)), z, back)))
        if given["traffic_light"]:
            z = junction + rng.uniform(-1, 1)
            objects.append((z, partial(roadside.draw_traffic_light, canvas, rng, side, z, state)))
        objects += _plan_people(canvas, rng, side)
    if given["car"]:
        objects += _plan_cars(canvas, rng, sides, junction)
    return objects


def _plan_plants(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[DrawCall]:
    objects: list[DrawCall] = []
    if rng.random() < 0.75:
        apart, row = rng.uniform(9, 16), rng.uniform(0.9, 1.4)
        for z in steps(rng.uniform(7, 20), 75, apart):
            objects.append((z, partial(roadside.draw_tree, canvas, rng, side.x(row), z)))
    if side.park:
        for z, out in zip(rng.uniform(12, 90, 14).tolist(), rng.uniform(4, 26, 14).tolist(), strict=True):
            objects.append((z, partial(roadside.draw_tree, canvas, rng, side.x(side.walk + out), z)))
    if side.garden:
        for z, out in zip(rng.uniform(8, 50, 5).tolist(), rng.uniform(1.0, side.garden, 5).tolist(), strict=True):
            objects.append((z, partial(roadside.draw_bush, canvas, rng, side.x(side.walk + out), z)))
        if rng.random() < 0.5:
            z, length = rng.uniform(9, 24), rng.uniform(6, 14)
            objects.append((z + length, partial(roadside.draw_hedge, canvas, rng, side.x(side.walk + 0.4), z, length)))
    return objects


def _plan_fence(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[DrawCall]:
    open_ground = bool(side.garden) or side.park
    style = str(rng.choice(("pickets", "railings", "mesh") if open_ground else ("railings", "rails")))
    height = rng.uniform(1.1, 1.7) if open_ground else rng.uniform(0.9, 1.1)
    x = side.x(side.walk + 0.15 if open_ground else 0.3)
    near = rng.uniform(6, 12)
    objects: list[DrawCall] = []
    for z in steps(near, near + rng.uniform(10, 26), 2.0):
        objects.append((z + 1, partial(roadside.draw_fence, canvas, (x, z), (x, z + 2.0), style, height)))
    return objects


def _plan_people(canvas: Canvas, rng: np.random.Generator, side: Side) -> list[DrawCall]:
    objects: list[DrawCall] = []
    for _ in range(int(rng.integers(0, 5))):
        z, x = rng.uniform(7, 34), side.x(rng.uniform(0.8, side.walk - 0.3))
        objects.append((z, partial(street_furniture.draw_person, canvas, rng, x, z)))
    for draw, chance in (
        (street_furniture.draw_bicycle, 0.35),
        (street_furniture.draw_bin, 0.5),
        (street_furniture.draw_poster, 0.35),
    ):
        if rng.random() < chance:
            z = rng.uniform(9, 28)
            objects.append((z, partial(draw, canvas, rng, side.x(rng.uniform(0.7, 1.6)), z)))
    if rng.random() < 0.25:
        for z in steps(rng.uniform(7, 10), 24, 2.2):
            objects.append((z, partial(street_furniture.draw_bollard, canvas, side.x(0.35), z)))
    return objects


def _plan_cars(canvas: Canvas, rng: np.random.Generator, sides: tuple[Side, Side], junction: float) -> list[DrawCall]:
    objects: list[DrawCall] = []
    for side in sides:
        heading, taken = ("away" if side.sign > 0 else "oncoming"), rng.uniform(0.25, 0.8)
        for z in steps(rng.uniform(6, 13), 62, 6.2):
            if rng.random() < taken:
                objects.append((z, partial(draw_car, canvas, rng, side.x(-1.15), z + rng.uniform(-0.4, 0.4), heading)))
    middle = (sides[0].kerb + sides[1].kerb) / 2
    if rng.random() < 0.7:
        z = rng.uniform(9, 40)
        objects.append((z, partial(draw_car, canvas, rng, middle + 1.7, z, "away")))
    for z in rng.uniform(10, 60, int(rng.integers(0, 3))).tolist():
        objects.append((z, partial(draw_car, canvas, rng, middle - 1.7, z, "oncoming")))
    if rng.random() < 0.15:
        z = junction + 6
        objects.append((z, partial(draw_car, canvas, rng, middle + rng.uniform(-4, 3), z, "crossing")))
    return objects
