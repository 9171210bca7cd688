"""Plants, fences, poles, traffic signs and traffic lights of the street scenes.  Lengths in metres.

Labels follow Cityscapes: a trunk is vegetation, the gaps of a fence are fence, the arm of a pole is pole; the lamp of a
pole and the back of a sign are OTHER.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgseg.data.streets.buildings import DETAIL_M, Side, flat, panel, wall
from fgseg.data.streets.canvas import Canvas, Colour, Point, pick, scale, steps
from fgseg.data.streets.classes import FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION

SHADOW_TOP_M = 3.0
"""Height from which leaves are in the sun even if the ground below them is in the shadow of houses."""
THICKNESS_M = 0.03
"""Width, at least, of an upright of a fence that is seen edge-on."""
LEAVES: Sequence[Colour] = ((86, 122, 52), (66, 104, 56), (108, 132, 54), (58, 92, 62), (128, 128, 52), (150, 116, 48))
BARK: Colour = (92, 74, 60)
STEEL: Colour = (122, 126, 130)
PALE_STEEL: Colour = (176, 180, 182)
DARK_STEEL: Colour = (52, 58, 60)
SHADOW: Colour = (10, 11, 20)
WHITE: Colour = (240, 240, 236)
RED: Colour = (200, 26, 32)
BLUE: Colour = (24, 84, 170)
YELLOW: Colour = (244, 196, 40)
BLACK: Colour = (28, 28, 30)
HOUSING: Colour = (30, 34, 34)
LAMPS: Sequence[Colour] = ((255, 52, 40), (255, 186, 44), (60, 240, 140))


@dataclass(frozen=True)
class Fence:
    """The construction of a fence; lengths in metres."""

    material: Colour
    rails: tuple[float, ...]
    """Heights of the rails, as shares of the height of the fence."""
    spacing: float
    """Distance between two uprights."""
    width: float
    """Width of an upright."""
    netting: bool = False
    """Whether diagonal wires fill the gaps."""


FENCES = {
    "pickets": Fence((222, 214, 196), (0.3, 0.8), 0.28, 0.11),
    "railings": Fence(DARK_STEEL, (0.12, 0.94), 0.24, 0.035),
    "mesh": Fence((116, 132, 124), (0.98,), 2.0, 0.06, netting=True),
    "rails": Fence(PALE_STEEL, (0.3, 0.62, 0.96), 1.6, 0.08),
}


def draw_crown(
    canvas: Canvas, rng: np.random.Generator, centre: Point, radii: tuple[float, float], leaf: Colour
) -> None:
    """Draw an irregular cluster of leaves, brighter on the sun's side; horizontal and vertical radius in metres."""
    x, y, z = centre
    count = int(np.clip(800 / z, 9, 76))
    turn, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
    dx, dy = np.cos(turn) * reach, np.sin(turn) * reach
    sunward = 0.55 * dx * canvas.light.sun_side + 0.75 * dy + rng.normal(0, 0.22, count)
    size = rng.uniform(0.65, 1.6, count) * (1.15 - 0.5 * reach) / count**0.45
    light, (across, up) = canvas.light, radii
    shade = light.shade(scale(leaf, 0.5), "near", x)
    for angle in steps(0.3, 6.0, math.pi / 2.5):
        heart = (x + math.cos(angle) * across * 0.4, y + math.sin(angle) * up * 0.4, z)
        canvas.disc(heart, (across * 0.5, up * 0.5), shade, VEGETATION)
    # The shadow of the houses lies on the ground; leaves above SHADOW_TOP_M are in the sun.
    shade_x = x if y < SHADOW_TOP_M else None
    for sun, right, high, share in sorted(zip(sunward.tolist(), dx.tolist(), dy.tolist(), size.tolist(), strict=True)):
        tone = light.shade(scale(leaf, 0.55 + 0.3 * max(0.0, sun + 0.8)), "up" if sun > 0.1 else "near", shade_x)
        canvas.disc((x + right * across, y + high * up, z), (share * across, share * up), tone, VEGETATION)


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a street tree: shadow, limbs, trunk, crown."""
    leaf = scale(LEAVES[rng.choice(len(LEAVES), p=(0.3, 0.24, 0.2, 0.16, 0.06, 0.04))], rng.uniform(0.85, 1.2))
    across, fork = rng.uniform(1.5, 2.6), rng.uniform(2.4, 3.4)
    up = across * rng.uniform(0.9, 1.5)
    girth = rng.uniform(0.2, 0.38)
    away = -canvas.light.sun_side
    canvas.glaze(flat(x + away * 0.4, x + away * 3.2, z - 1.6, z + 1.6), SHADOW, 0.22)
    bark = canvas.light.shade(scale(BARK, rng.uniform(0.7, 1.2)), "near", x)
    middle = fork + up * 0.75
    for lean in (-0.5, 0.1, 0.55) if z < DETAIL_M else ():
        canvas.bar(((x, fork * 0.7, z), (x + lean * across, middle, z)), girth * 0.45, bark, VEGETATION)
    canvas.bar(((x, 0.0, z), (x, middle, z)), girth, bark, VEGETATION)
    dark = x + away * girth * 0.3
    canvas.bar(((dark, 0.0, z), (dark, fork, z)), girth * 0.4, scale(bark, 0.65), VEGETATION)
    draw_crown(canvas, rng, (x, middle, z), (across, up), leaf)


def draw_bush(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a low shrub."""
    across = rng.uniform(0.6, 1.3)
    leaf = scale(pick(rng, LEAVES[:4]), rng.uniform(0.8, 1.1))
    draw_crown(canvas, rng, (x, across * 0.6, z), (across, across * 0.8), leaf)


def draw_hedge(canvas: Canvas, rng: np.random.Generator, x: float, z: float, length: float) -> None:
    """Draw a clipped hedge of `length` metres along the street, seen from the road."""
    height, thick = rng.uniform(0.9, 1.5), 0.8 * (1 if x > 0 else -1)
    leaf = scale(pick(rng, LEAVES[:4]), rng.uniform(0.75, 1.0))
    light, face = canvas.light, "left" if x > 0 else "right"
    canvas.polygon(flat(x, x + thick, z, z + length, height), light.shade(scale(leaf, 1.1), "up", x), VEGETATION)
    canvas.polygon(wall(x, z, z + length, 0, height), light.shade(scale(leaf, 0.8), face, x), VEGETATION)
    canvas.polygon(panel(x, x + thick, 0, height, z), light.shade(scale(leaf, 0.7), "near", x), VEGETATION)
    for along, up, tone in rng.random((int(length * 5), 3)).tolist():
        spot = (x, 0.2 + up * (height - 0.2), z + along * length)
        canvas.disc(spot, (0.22, 0.16), light.shade(scale(leaf, 0.6 + 0.6 * tone), face, x), VEGETATION)


def draw_fence(canvas: Canvas, start: tuple[float, float], end: tuple[float, float], style: str, height: float) -> None:
    """Draw a see-through fence between two points on the ground.

    Args:
        canvas: receives the fence.
        start, end: x and z in metres.
        style: a key of FENCES.
        height: in metres.
    """
    (x0, z0), (x1, z1) = start, end
    make = FENCES[style]
    tone = canvas.light.shade(make.material, "left" if x0 > 0 else "right", x0)
    length = math.hypot(x1 - x0, z1 - z0)

    def at(along: float, y: float) -> Point:
        share = along / length
        return (x0 + (x1 - x0) * share, y, z0 + (z1 - z0) * share)

    canvas.region([at(0, 0.05), at(0, height), at(length, height), at(length, 0.05)], FENCE)
    for share in make.rails:
        canvas.bar((at(0, height * share), at(length, height * share)), 0.06, tone, None)
    for along in steps(0.0, length, make.spacing):
        x, _, z = at(along, 0)
        # A flat picket is seen edge-on where the fence runs away from the camera.
        seen = max(make.width * abs(x) / math.hypot(x, z), THICKNESS_M)
        canvas.bar((at(along, 0), at(along, height)), seen, tone, None)
    if make.netting:
        for along in steps(-height, length, 0.3):
            low, high = max(along, 0.0), min(along + height, length)
            canvas.wire((at(low, low - along), at(high, high - along)), tone, 0.75)
            canvas.wire((at(low, height - low + along), at(high, height - high + along)), tone, 0.75)


def draw_lamp_post(canvas: Canvas, rng: np.random.Generator, side: Side, z: float) -> None:
    """Draw a tall lamp post with an arm over the road."""
    x, height, reach = side.x(rng.uniform(0.4, 0.7)), rng.uniform(5.5, 7.5), rng.uniform(0.9, 2.2)
    tone = canvas.light.shade(pick(rng, (STEEL, DARK_STEEL, PALE_STEEL)), "near", x)
    over = x - side.sign * reach
    canvas.bar(((x, 0, z), (x, 1.0, z)), 0.3, tone, POLE)
    canvas.bar(((x, 0, z), (x, height, z)), 0.2, tone, POLE)
    canvas.bar(((x, height - 0.3, z), (over, height, z)), 0.12, tone, POLE)
    lamp = (255, 236, 190) if canvas.light.lamps > 0.2 else scale(tone, 0.8)
    canvas.bar(((over - 0.3, height, z), (over + 0.3, height, z)), 0.17, lamp)
    if canvas.light.lamps > 0.2:
        canvas.glow((over, height - 0.1, z), 1.1, (255, 226, 160), 0.5)


def draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float, back: bool) -> None:
    """Draw one or two signs on a post; with `back`, their grey backs, which are OTHER."""
    size, height = rng.uniform(0.44, 0.62), rng.uniform(2.3, 3.1)
    post = canvas.light.shade(PALE_STEEL if rng.random() < 0.6 else STEEL, "near", x)
    canvas.bar(((x, 0, z), (x, height + size, z)), 0.14, post, POLE)
    kinds = rng.choice(7, size=2, replace=False, p=(0.2, 0.14, 0.16, 0.08, 0.12, 0.14, 0.16))
    for row, kind in enumerate(kinds[: 1 + (rng.random() < 0.4)]):
        centre = (x, height - row * size * 2.05, z)
        if back:
            canvas.disc(centre, (size, size), canvas.light.shade((134, 138, 142), "near", x))
        else:
            _draw_plate(canvas, centre, size, int(kind))


def _draw_plate(canvas: Canvas, centre: Point, size: float, kind: int) -> None:
    x, y, z = centre

    def paint(colour: Colour) -> Colour:
        return scale(canvas.light.shade(colour, "near"), 1.12)

    def corners(count: int, share: float, turn: float) -> list[Point]:
        angles = [turn + 2 * math.pi * i / count for i in range(count)]
        return [(x + math.cos(a) * size * share, y + math.sin(a) * size * share, z) for a in angles]

    def bars(colour: Colour, *boxes: tuple[float, float, float, float]) -> None:
        for x0, x1, y0, y1 in boxes:
            canvas.polygon(
                panel(x + x0 * size, x + x1 * size, y + y0 * size, y + y1 * size, z), paint(colour), TRAFFIC_SIGN
            )

    up, down, octagon = math.pi / 2, -math.pi / 2, math.pi / 8
    if kind == 0:
        canvas.disc(centre, (size, size), paint(RED), TRAFFIC_SIGN)
        canvas.disc(centre, (size * 0.72, size * 0.72), paint(WHITE), TRAFFIC_SIGN)
        bars(BLACK, (-0.38, -0.08, -0.3, 0.3), (0.08, 0.38, -0.3, 0.3))
    elif kind == 1:
        canvas.disc(centre, (size, size), paint(WHITE), TRAFFIC_SIGN)
        canvas.disc(centre, (size * 0.92, size * 0.92), paint(BLUE), TRAFFIC_SIGN)
        bars(WHITE, (-0.12, 0.12, -0.55, 0.2))
        barbs = ((-0.4, 0.15), (0.0, 0.65), (0.4, 0.15))
        canvas.polygon([(x + size * right, y + size * high, z) for right, high in barbs], paint(WHITE), TRAFFIC_SIGN)
    elif kind in (2, 3):
        turn = up if kind == 2 else down
        canvas.polygon(corners(3, 1.3, turn), paint(RED), TRAFFIC_SIGN)
        canvas.polygon(corners(3, 0.8, turn), paint(WHITE), TRAFFIC_SIGN)
        if kind == 2:
            bars(BLACK, (-0.09, 0.09, -0.25, 0.4))
    elif kind == 4:
        canvas.polygon(corners(8, 1.12, octagon), paint(WHITE), TRAFFIC_SIGN)
        canvas.polygon(corners(8, 1.0, octagon), paint(RED), TRAFFIC_SIGN)
        bars(WHITE, *((left, left + 0.26, -0.25, 0.25) for left in (-0.7, -0.32, 0.06, 0.44)))
    elif kind == 5:
        bars(WHITE, (-0.85, 0.85, -1, 1))
        bars(BLUE, (-0.77, 0.77, -0.92, 0.92))
        bars(WHITE, (-0.4, -0.12, -0.6, 0.6), (-0.4, 0.4, 0.35, 0.6), (0.15, 0.4, 0.0, 0.6), (-0.4, 0.4, -0.1, 0.12))
    else:
        canvas.polygon(corners(4, 1.25, 0.0), paint(WHITE), TRAFFIC_SIGN)
        canvas.polygon(corners(4, 1.0, 0.0), paint(YELLOW), TRAFFIC_SIGN)


def draw_traffic_light(canvas: Canvas, rng: np.random.Generator, side: Side, z: float, state: int) -> None:
    """Draw a post with a traffic light; some posts carry a second one on an arm over the road.

    Args:
        canvas: receives the post.
        rng: decides position, colour and arm.
        side: side of the street.
        z: distance in metres.
        state: index of the lit lamp, 0 (top, red) to 2 (bottom, green).
    """
    x, arm = side.x(rng.uniform(0.4, 0.8)), rng.random() < 0.55 and z > 15
    tone = canvas.light.shade(pick(rng, (STEEL, DARK_STEEL, PALE_STEEL)), "near", x)
    height = rng.uniform(5.4, 6.2) if arm else rng.uniform(3.3, 3.7)
    canvas.bar(((x, 0, z), (x, height, z)), 0.2 if arm else 0.16, tone, POLE)
    _draw_housing(canvas, (x - side.sign * 0.25, 2.9, z - 0.1), state)
    if arm:
        tip = x - side.sign * rng.uniform(3.0, 5.0)
        canvas.bar(((x, height - 0.15, z), (tip, height, z)), 0.13, tone, POLE)
        _draw_housing(canvas, (tip, height - 0.1, z - 0.1), state)


def _draw_housing(canvas: Canvas, centre: Point, state: int) -> None:
    x, y, z = centre
    canvas.polygon(panel(x - 0.29, x + 0.29, y - 0.72, y + 0.72, z), canvas.light.shade(HOUSING, "near"), TRAFFIC_LIGHT)
    for row, lamp in enumerate(LAMPS):
        spot = (x, y + 0.45 - 0.45 * row, z)
        canvas.disc(spot, (0.18, 0.18), lamp if row == state else scale(lamp, 0.2), TRAFFIC_LIGHT)
        if row == state:
            canvas.glow(spot, 0.5, lamp, 0.3)
