"""The paper on which the street scenes are drawn: world metres in, a picture and its labels out.

x points right, y up and z ahead; the camera stands at x = 0, z = 0.  Whatever is drawn later hides what lies below it,
in the picture and in the labels alike, so a scene is drawn from back to front.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float, float]
"""x, y, z in metres."""
Colour = tuple[float, float, float]
"""Red, green, blue in 0..255; floats, and brighter than white before it is clipped."""

SUPERSAMPLING = 2
NEAREST_M = 0.6
"""Points closer to the camera plane than this are moved onto it: a projection has no answer behind the lens."""
SHADED = 0.12
"""What is left of direct sunlight inside a cast shadow."""


@dataclass(frozen=True)
class View:
    """A pinhole camera; lengths in image heights, so that it holds at any size."""

    focal: float
    horizon: float
    """Height of the horizon, measured from the top edge."""
    vanishing: float
    """The vanishing point's offset to the right of the middle."""
    eye_m: float
    """Height of the lens above the road."""


@dataclass(frozen=True)
class Light:
    """The time of day."""

    zenith: Colour
    skyline: Colour
    sun: Colour
    """Factor that direct light adds to a colour."""
    ambient: Colour
    """Factor that a colour keeps in full shade."""
    sun_side: int
    """-1: the sun stands to the left; 1: to the right."""
    shadow_x: float
    """Where the shadow of the sun-side houses ends on the ground."""
    haze_m: float
    """The distance at which haze has taken 63 % of the contrast."""
    lamps: float
    """Share of windows and lamps that are lit, 0..1."""

    def shade(self, colour: Colour, face: str, x: float | None = None) -> Colour:
        """The colour of a surface under this light.

        Args:
            colour: of the material.
            face: where the surface looks: "up", "left", "right" or "near" (towards the camera).
            x: where it stands, if the houses' shadow may fall on it.
        """
        facing = {"up": 0.75, "near": 0.35, "left": 0.95 * (self.sun_side < 0), "right": 0.95 * (self.sun_side > 0)}
        shadowed = x is not None and self.sun_side * (x - self.shadow_x) > 0
        direct = facing[face] * (SHADED if shadowed else 1.0)
        r, g, b = (c * (a + direct * s) for c, a, s in zip(colour, self.ambient, self.sun, strict=True))
        return (r, g, b)


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` (0..1) of it replaced by `b`."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scale(colour: Colour, factor: float) -> Colour:
    """A brighter (factor > 1) or darker tone of the colour."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


class Canvas:
    """Picture and labels of one scene, at twice the size asked for until `finish`."""

    def __init__(self, height: int, width: int, view: View, light: Light):
        self.view = view
        self.light = light
        self._size = (height, width)
        self._scale = height * SUPERSAMPLING
        self._centre = width * SUPERSAMPLING / 2 + view.vanishing * self._scale
        shape = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._picture = Image.new("RGB", shape)
        self._labels = Image.new("L", shape)
        self._ink = ImageDraw.Draw(self._picture)
        self._glaze = ImageDraw.Draw(self._picture, "RGBA")
        self._ids = ImageDraw.Draw(self._labels)

    def project(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Where world points lie on the enlarged picture, in its pixels."""
        reach, horizon = self.view.focal * self._scale, self.view.horizon * self._scale
        flat = []
        for x, y, z in points:
            per_m = reach / max(z, NEAREST_M)
            flat.append((self._centre + x * per_m, horizon + (self.view.eye_m - y) * per_m))
        return flat

    def hazed(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """The colour as it arrives from `z` metres away, ready for Pillow."""
        r, g, b = blend(colour, self.light.skyline, 1.0 - math.exp(-max(z, 0.0) / self.light.haze_m))
        return (min(int(r), 255), min(int(g), 255), min(int(b), 255))

    def backdrop(self, picture: np.ndarray) -> None:
        """Stretch a small picture (h, w, 3) uint8 over the whole paper."""
        self._picture.paste(Image.fromarray(picture).resize(self._picture.size, Image.Resampling.BICUBIC))

    def polygon(self, points: Sequence[Point], colour: Colour, label: int | None = 0) -> None:
        """Fill a flat shape; `label` None leaves the labels as they are (the bars of a fence, whose region is set
        apart by `region`)."""
        flat = self.project(points)
        self._ink.polygon(flat, fill=self.hazed(colour, sum(p[2] for p in points) / len(points)))
        if label is not None:
            self._ids.polygon(flat, fill=label)

    def region(self, points: Sequence[Point], label: int) -> None:
        """Label a flat shape and leave the picture as it is."""
        self._ids.polygon(self.project(points), fill=label)

    def glaze(self, points: Sequence[Point], colour: Colour, opacity: float) -> None:
        """Lay a see-through tint (a shadow, a reflection) over the picture and leave the labels as they are."""
        r, g, b = colour
        self._glaze.polygon(self.project(points), fill=(int(r), int(g), int(b), int(255 * opacity)))

    def disc(self, centre: Point, radii: tuple[float, float], colour: Colour, label: int | None = 0) -> None:
        """Fill an ellipse that faces the camera; radii in metres, across and up."""
        box = self._box(centre, radii)
        self._ink.ellipse(box, fill=self.hazed(colour, centre[2]))
        if label is not None:
            self._ids.ellipse(box, fill=label)

    def glow(self, centre: Point, radius: float, colour: Colour, opacity: float) -> None:
        """A soft halo around a lamp, or with a dark colour the soft shadow of a crown."""
        r, g, b = (int(c) for c in colour)
        for share in (1.0, 0.72, 0.45):
            box = self._box(centre, (radius * share, radius * share))
            self._glaze.ellipse(box, fill=(r, g, b, int(255 * opacity / 3)))

    def bar(self, ends: tuple[Point, Point], width: float, colour: Colour, label: int | None = 0) -> None:
        """A straight bar of `width` metres, never thinner than one pixel of the finished picture."""
        (x0, y0), (x1, y1) = self.project(ends)
        per_m = self.view.focal * self._scale / 2
        half0, half1 = (max(width * per_m / max(p[2], NEAREST_M), SUPERSAMPLING / 2 - 0.5) for p in ends)
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        flat = [
            (x0 + nx * half0, y0 + ny * half0),
            (x1 + nx * half1, y1 + ny * half1),
            (x1 - nx * half1, y1 - ny * half1),
            (x0 - nx * half0, y0 - ny * half0),
        ]
        self._ink.polygon(flat, fill=self.hazed(colour, (ends[0][2] + ends[1][2]) / 2))
        if label is not None:
            self._ids.polygon(flat, fill=label)

    def wire(self, ends: tuple[Point, Point], colour: Colour, opacity: float) -> None:
        """A hairline that leaves the labels as they are."""
        tint = (*self.hazed(colour, (ends[0][2] + ends[1][2]) / 2), int(255 * opacity))
        self._glaze.line(self.project(ends), fill=tint, width=max(1, self._scale // 256))

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Reduce to the size asked for and expose the picture as a camera would.

        Returns:
            (H, W, 3) uint8 picture with a vignette, uneven light and sensor noise; (H, W) uint8 labels, never mixed.
        """
        height, width = self._size
        picture = np.asarray(self._picture.reduce(SUPERSAMPLING), dtype=np.float32)
        down, across = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
        stops = rng.normal(0.0, 0.09)
        blotches = Image.fromarray(rng.normal(1.0, 0.035, (9, 17)).astype(np.float32))
        gain = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)) * np.float32(2.0**stops)
        gain = gain * (1.0 - 0.1 * (down[:, None] ** 2 + across[None, :] ** 2))
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(1.0, 4.0))
        exposed = np.clip(picture * gain[:, :, None] + grain, 0, 255).astype(np.uint8)
        return exposed, np.asarray(self._labels)[1::SUPERSAMPLING, 1::SUPERSAMPLING].copy()

    def _box(self, centre: Point, radii: tuple[float, float]) -> list[float]:
        (u, v), per_m = self.project([centre])[0], self.view.focal * self._scale / max(centre[2], NEAREST_M)
        return [u - radii[0] * per_m, v - radii[1] * per_m, u + radii[0] * per_m, v + radii[1] * per_m]
