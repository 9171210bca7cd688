"""The paper on which the street scenes are drawn: world metres in, a picture and its labels out.

x points right, y up and z ahead; the camera stands at x = 0, z = 0.  Whatever is drawn later hides what lies below it,
in the picture and in the labels alike, so a scene is drawn from back to front.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float, float]
"""x, y, z in metres."""
Colour = tuple[float, float, float]
"""Red, green, blue in 0..255; floats, and brighter than white before it is clipped."""

Option = TypeVar("Option")

SUPERSAMPLING = 2
THINNEST_PX = 0.5
"""Half the width of the thinnest bar, on the enlarged picture; Pillow fills the pixels that it touches."""
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
    """Where the shadow of the sun-side houses ends on the ground; infinite on the sun's side where none falls."""
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
        shadowed = x is not None and self.sun_side * (x - self.shadow_x) > 0
        r, g, b = self._gains[face, shadowed]
        return (colour[0] * r, colour[1] * g, colour[2] * b)

    @cached_property
    def _gains(self) -> dict[tuple[str, bool], Colour]:
        facing = {"up": 0.75, "near": 0.35, "left": 0.95 * (self.sun_side < 0), "right": 0.95 * (self.sun_side > 0)}
        gains = {}
        for face, direct in facing.items():
            for shadowed in (False, True):
                share = direct * (SHADED if shadowed else 1.0)
                r, g, b = (a + share * s for a, s in zip(self.ambient, self.sun, strict=True))
                gains[face, shadowed] = (r, g, b)
        return gains


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` (0..1) of it replaced by `b`."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scale(colour: Colour, factor: float) -> Colour:
    """A brighter (factor > 1) or darker tone of the colour."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def steps(start: float, stop: float, step: float) -> list[float]:
    """Evenly spaced positions from `start` to before `stop`, as plain floats, with which Python is quicker."""
    return np.arange(start, stop, step).tolist()


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
        self._blank = True
        self._ink = ImageDraw.Draw(self._picture)
        self._glaze = ImageDraw.Draw(self._picture, "RGBA")
        self._ids = ImageDraw.Draw(self._labels)

    def project(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Where world points lie on the enlarged picture, in its pixels."""
        reach, horizon = self.view.focal * self._scale, self.view.horizon * self._scale
        flat = []
        for x, y, z in points:
            per_m = reach / (z if z > NEAREST_M else NEAREST_M)
            flat.append((self._centre + x * per_m, horizon + (self.view.eye_m - y) * per_m))
        return flat

    def hazed(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """The colour as it arrives from `z` metres away, ready for Pillow."""
        r, g, b = blend(colour, self.light.skyline, 1.0 - math.exp(-z / self.light.haze_m))
        return (int(r) if r < 255 else 255, int(g) if g < 255 else 255, int(b) if b < 255 else 255)

    def backdrop(self, picture: np.ndarray) -> None:
        """Stretch a small picture (h, w, 3) uint8 over the whole paper."""
        self._picture.paste(Image.fromarray(picture).resize(self._picture.size, Image.Resampling.BILINEAR))

    def polygon(self, points: Sequence[Point], colour: Colour, label: int | None = 0) -> None:
        """Fill a flat shape; `label` None leaves the labels as they are (the bars of a fence, whose region is set
        apart by `region`)."""
        flat = self.project(points)
        self._ink.polygon(flat, fill=self.hazed(colour, (points[0][2] + points[len(points) // 2][2]) / 2))
        if self._marks(label):
            self._ids.polygon(flat, fill=label)

    def region(self, points: Sequence[Point], label: int) -> None:
        """Label a flat shape and leave the picture as it is."""
        self._blank = False
        self._ids.polygon(self.project(points), fill=label)

    def glaze(self, points: Sequence[Point], colour: Colour, opacity: float) -> None:
        """Lay a see-through tint (a shadow, a reflection) over the picture and leave the labels as they are."""
        r, g, b = colour
        self._glaze.polygon(self.project(points), fill=(int(r), int(g), int(b), int(255 * opacity)))

    def disc(self, centre: Point, radii: tuple[float, float], colour: Colour, label: int | None = 0) -> None:
        """Fill an ellipse that faces the camera; radii in metres, across and up."""
        box = self._box(centre, radii)
        self._ink.ellipse(box, fill=self.hazed(colour, centre[2]))
        if self._marks(label):
            self._ids.ellipse(box, fill=label)

    def glow(self, centre: Point, radius: float, colour: Colour, opacity: float) -> None:
        """A soft halo around a lamp; leaves the labels as they are."""
        r, g, b = (int(c) for c in colour)
        for share in (1.0, 0.86, 0.72, 0.58, 0.44, 0.3):
            box = self._box(centre, (radius * share, radius * share))
            self._glaze.ellipse(box, fill=(r, g, b, int(255 * opacity / 6)))

    def bar(self, ends: tuple[Point, Point], width: float, colour: Colour, label: int | None = 0) -> None:
        """A straight bar of `width` metres, never too thin to be seen."""
        (x0, y0), (x1, y1) = self.project(ends)
        per_m = self.view.focal * self._scale / 2
        half0 = max(width * per_m / max(ends[0][2], NEAREST_M), THINNEST_PX)
        half1 = max(width * per_m / max(ends[1][2], NEAREST_M), THINNEST_PX)
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        flat = [
            (x0 + nx * half0, y0 + ny * half0),
            (x1 + nx * half1, y1 + ny * half1),
            (x1 - nx * half1, y1 - ny * half1),
            (x0 - nx * half0, y0 - ny * half0),
        ]
        self._ink.polygon(flat, fill=self.hazed(colour, (ends[0][2] + ends[1][2]) / 2))
        if self._marks(label):
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
        # The grain comes last: it alone takes more random numbers from a larger picture.
        stops, coarseness = rng.normal(0.12, 0.12), rng.uniform(1.0, 3.0)
        blotches = Image.fromarray(rng.normal(1.0, 0.035, (9, 17)).astype(np.float32))
        gain = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)) * np.float32(2.0**stops)
        gain = gain * (1.0 - 0.1 * (down[:, None] ** 2 + across[None, :] ** 2))
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(coarseness)
        exposed = np.clip(picture * gain[:, :, None] + grain, 0, 255).astype(np.uint8)
        return exposed, np.asarray(self._labels)[1::SUPERSAMPLING, 1::SUPERSAMPLING].copy()

    def _marks(self, label: int | None) -> bool:
        # Nearly half of a scene is background on paper that is still all background; Pillow need not repeat it.
        self._blank = self._blank and not label
        return label is not None and not self._blank

    def _box(self, centre: Point, radii: tuple[float, float]) -> list[float]:
        (u, v), per_m = self.project([centre])[0], self.view.focal * self._scale / max(centre[2], NEAREST_M)
        return [u - radii[0] * per_m, v - radii[1] * per_m, u + radii[0] * per_m, v + radii[1] * per_m]
