"""Cars of the street scenes: a side outline, extruded over the width of the car.  Lengths in metres."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fgseg.data.streets.buildings import DETAIL_M
from fgseg.data.streets.canvas import Canvas, Colour, Point, blend, pick, scale
from fgseg.data.streets.classes import CAR

PAINTS: Sequence[Colour] = (
    (228, 228, 226), (176, 180, 184), (96, 100, 106), (38, 40, 46), (36, 60, 112), (158, 34, 34),
    (40, 104, 112), (196, 150, 50), (52, 78, 58), (120, 30, 46), (88, 128, 168), (208, 196, 172),
)  # fmt: skip
TYRE: Colour = (24, 24, 27)
GLASS: Colour = (34, 42, 52)
TAIL: Colour = (190, 24, 24)
HEAD: Colour = (238, 240, 232)
SHADOW: Colour = (10, 11, 20)


@dataclass(frozen=True)
class Body:
    """The shape of a car."""

    length: float
    width: float
    outline: Sequence[tuple[float, float, str]]
    """Points from the lower end of the tail over the roof to the lower end of the nose.

    Each has a position along the length (0 tail, 1 nose), a height in metres, and the material up to the next point.
    """

    def belt_and_roof(self) -> tuple[float, float]:
        """Return the heights of the belt line and the roof, in metres."""
        heights = [y for _, y, _ in self.outline]
        glass = [y for _, y, part in self.outline if part == "glass"]
        return min(glass), max(heights)


BODIES = (
    Body(3.9, 1.72, ((0, 0.22, "panel"), (0, 0.92, "glass"), (0.13, 1.42, "paint"), (0.58, 1.47, "glass"),
                     (0.77, 0.98, "paint"), (0.97, 0.78, "panel"), (1, 0.22, "end"))),
    Body(4.5, 1.8, ((0, 0.22, "panel"), (0.01, 0.94, "paint"), (0.13, 1.0, "glass"), (0.28, 1.40, "paint"),
                    (0.57, 1.43, "glass"), (0.75, 0.98, "paint"), (0.98, 0.76, "panel"), (1, 0.22, "end"))),
    Body(4.5, 1.88, ((0, 0.3, "panel"), (0, 1.05, "glass"), (0.07, 1.62, "paint"), (0.60, 1.68, "glass"),
                     (0.76, 1.12, "paint"), (0.98, 0.98, "panel"), (1, 0.3, "end"))),
    Body(4.9, 1.9, ((0, 0.3, "panel"), (0, 1.12, "glass"), (0.03, 1.86, "paint"), (0.72, 1.93, "glass"),
                    (0.90, 1.15, "paint"), (1, 0.92, "panel"), (1, 0.3, "end"))),
)  # fmt: skip

ROUND = [(math.cos(i * math.pi / 5), math.sin(i * math.pi / 5)) for i in range(10)]

ToWorld = Callable[[float, float, float], Point]
"""Maps a position along the length in [0, 1], across the width in [-1, 1] and a height in metres to a world point."""


def draw_car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, heading: str) -> None:
    """Draw one car.

    Args:
        canvas: receives the car.
        rng: decides shape and paint.
        x, z: middle of the edge nearest to the camera, in metres.
        heading: "away" (tail towards the camera), "oncoming" (nose) or "crossing" (side).
    """
    body = BODIES[rng.choice(len(BODIES), p=(0.36, 0.3, 0.24, 0.1))]
    paint = scale(pick(rng, PAINTS), rng.uniform(0.85, 1.1))
    to_world = _body_to_world(body, x, z, heading)
    _draw_shadow(canvas, body, x, z, heading)
    across = heading == "crossing"
    near_side = -1.0 if across or x > 0 else 1.0
    _draw_shell(canvas, body, paint, to_world, heading)
    face = "near" if across else ("left" if x > 0 else "right")
    _draw_side(canvas, body, canvas.light.shade(paint, face, x), to_world, near_side)
    if not across:
        _draw_end(canvas, canvas.light.shade(paint, "near", x), body, to_world, heading == "away")


def _body_to_world(body: Body, x: float, z: float, heading: str) -> ToWorld:
    belt, roof = body.belt_and_roof()

    def to_world(along: float, side: float, y: float) -> Point:
        inset = 1.0 - 0.17 * max(0.0, (y - belt) / (roof - belt))
        if heading == "crossing":
            return (x + (along - 0.5) * body.length, y, z + (1 + side * inset) * body.width / 2)
        ahead = along if heading == "away" else 1.0 - along
        return (x + side * inset * body.width / 2, y, z + ahead * body.length)

    return to_world


def _draw_shadow(canvas: Canvas, body: Body, x: float, z: float, heading: str) -> None:
    wide, deep = (body.length, body.width) if heading == "crossing" else (body.width, body.length)
    edge = canvas.light.shadow_x
    lit = math.isfinite(edge) and canvas.light.sun_side * (x - edge) <= 0
    shift = -canvas.light.sun_side * (0.9 if lit else 0.1)
    for grow, opacity in ((0.25, 0.22), (0.08, 0.35), (-0.1, 0.5)):
        x0, x1 = x - wide / 2 - grow + min(shift, 0) * (grow > 0), x + wide / 2 + grow + max(shift, 0) * (grow > 0)
        z0, z1 = z - grow, z + deep + grow
        canvas.glaze([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], SHADOW, opacity)


def _draw_shell(canvas: Canvas, body: Body, paint: Colour, to_world: ToWorld, heading: str) -> None:
    light = canvas.light
    strips = list(zip(body.outline[:-1], body.outline[1:], strict=True))
    for (a0, y0, part), (a1, y1, _) in strips if heading == "oncoming" else reversed(strips):
        x = to_world(a0, 0, y0)[0]
        steep = abs(y1 - y0) > abs(a1 - a0) * body.length * 0.5
        tone = light.shade(paint, "near" if steep else "up", x)
        if part == "glass":
            tone = blend(light.shade(GLASS, "near"), light.skyline, 0.22)
        quad = [to_world(a0, -1, y0), to_world(a0, 1, y0), to_world(a1, 1, y1), to_world(a1, -1, y1)]
        canvas.polygon(quad, tone, CAR)
        if part == "glass":
            sheen = [to_world(a0, -0.5, y0), to_world(a0, 0.1, y0), to_world(a1, 0.5, y1), to_world(a1, -0.1, y1)]
            canvas.glaze(sheen, (255, 255, 255), 0.10)


def _draw_side(canvas: Canvas, body: Body, tone: Colour, to_world: ToWorld, side: float) -> None:
    belt, roof = body.belt_and_roof()
    canvas.polygon([to_world(a, side, y) for a, y, _ in body.outline], tone, CAR)
    sill = body.outline[0][1]
    skirt = ((0, sill), (0, sill + 0.14), (1, sill + 0.14), (1, sill))
    canvas.polygon([to_world(a, side, y) for a, y in skirt], scale(tone, 0.55), CAR)
    tail_foot, _ = (a for a, _, part in body.outline if part == "glass")
    tops = [a for a, y, _ in body.outline if y > roof - 0.08]
    nose_foot = next(a for a, y, part in body.outline if part == "paint" and a > tops[-1])
    low, high = belt + 0.05, roof - 0.1
    glass = [(tail_foot + 0.04, low), (tops[0] + 0.02, high), (tops[-1], high), (nose_foot - 0.05, low)]
    pane = blend(GLASS, canvas.light.skyline, 0.18)
    canvas.polygon([to_world(a, side, y) for a, y in glass], pane, CAR)
    if to_world(0.5, side, 0)[2] > DETAIL_M:
        return
    for along in (0.36, 0.6):
        pillar = ((along - 0.01, belt), (along - 0.01, high), (along + 0.01, high), (along + 0.01, belt))
        canvas.polygon([to_world(a, side, y) for a, y in pillar], scale(tone, 0.8), CAR)
    for along in (0.18, 0.82):
        _draw_wheel(canvas, body, to_world, along, side)


def _draw_wheel(canvas: Canvas, body: Body, to_world: ToWorld, along: float, side: float) -> None:
    for radius, tone in ((0.34, TYRE), (0.2, (150, 152, 156)), (0.08, (60, 62, 66))):
        ring = [(along + cos * radius / body.length, 0.34 + sin * radius) for cos, sin in ROUND]
        canvas.polygon([to_world(a, side, y) for a, y in ring], canvas.light.shade(tone, "near"), CAR)
        if to_world(along, side, 0)[2] > DETAIL_M / 2:
            return


def _draw_end(canvas: Canvas, tone: Colour, body: Body, to_world: ToWorld, tail: bool) -> None:
    along = 0.0 if tail else 1.0
    top = body.outline[1][1] if tail else body.outline[-2][1]
    sill = body.outline[0][1]

    def patch(s0: float, s1: float, y0: float, y1: float, colour: Colour) -> None:
        corners = ((s0, y0), (s0, y1), (s1, y1), (s1, y0))
        canvas.polygon([to_world(along, s, y) for s, y in corners], colour, CAR)

    for s0 in (-0.95, 0.65):
        patch(s0, s0 + 0.3, 0.0, sill, TYRE)
    patch(-1, 1, sill, top, tone)
    patch(-1, 1, sill, sill + 0.22, scale(tone, 0.5))
    lamp = TAIL if tail else HEAD
    glowing = canvas.light.lamps > 0.2
    for s0 in (-0.95, 0.6):
        patch(s0, s0 + 0.35, top - 0.27, top - 0.1, lamp if glowing else scale(lamp, 0.85))
        if glowing:
            canvas.glow(to_world(along, s0 + 0.17, top - 0.18), 0.4, lamp, 0.4)
    if not tail:
        patch(-0.5, 0.5, top - 0.28, top - 0.12, (30, 30, 34))
    patch(-0.28, 0.28, sill + 0.16, sill + 0.3, (222, 220, 206))
