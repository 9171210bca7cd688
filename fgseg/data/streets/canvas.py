"""Canvas of the street scenes: shapes in metres are projected onto an image and its labels (ids of classes.py).

x points right, y up and z ahead; the camera is at x = 0, z = 0.  A later shape covers earlier ones in the image and in
the labels, so a scene is drawn from back to front.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from fgseg.data.streets.classes import OTHER

Point = tuple[float, float, float]
"""x, y, z in metres."""
Colour = tuple[float, float, float]
"""Red, green, blue as floats in [0, 255]; larger values are clipped when they are drawn."""

Option = TypeVar("Option")

SUPERSAMPLING = 2
"""Factor by which the canvas is larger than the finished image, on each side."""
MIN_HALF_WIDTH_PX = 0.5
"""Half the width of a bar on the enlarged image, at least; Pillow fills every pixel that a shape touches."""
NEAREST_M = 0.6
"""Points with a smaller z are projected as if at this z, since the projection is undefined at z <= 0."""
SHADOW_FACTOR = 0.12
"""Share of direct sunlight that reaches a surface in a cast shadow."""


@dataclass(frozen=True)
class View:
    """A pinhole camera; lengths are in image heights, which makes it independent of the image's size."""

    focal: float
    """Focal length."""
    horizon: float
    """Distance of the horizon from the top edge."""
    vanishing: float
    """Offset of the vanishing point to the right of the middle."""
    eye_m: float
    """Height of the camera above the road, in metres."""


@dataclass(frozen=True)
class Light:
    """The light of a time of day."""

    zenith: Colour
    skyline: Colour
    sun: Colour
    """Factor of direct light per channel, >= 0; added to `ambient` where the sun shines."""
    ambient: Colour
    """Factor of ambient light per channel, >= 0."""
    sun_side: int
    """-1: the sun is on the left; 1: on the right."""
    shadow_x: float
    """x in metres at which the shadow of the houses on the sun's side ends; +-infinity if they cast none."""
    haze_m: float
    """Distance in metres at which haze reduces the contrast by 63 %."""
    lamps: float
    """Share of windows and lamps that are lit, in [0, 1]."""

    def shade(self, colour: Colour, face: str, x: float | None = None) -> Colour:
        """Return the colour of a surface under this light.

        Args:
            colour: colour of the material.
            face: direction of the surface: "up", "left", "right" or "near" (towards the camera).
            x: position in metres of a surface on which the shadow of houses may fall; None: it never does.
        """
        shadowed = x is not None and self.sun_side * (x - self.shadow_x) > 0
        r, g, b = self._factors[face, shadowed]
        return (colour[0] * r, colour[1] * g, colour[2] * b)

    @cached_property
    def _factors(self) -> dict[tuple[str, bool], Colour]:
        """Return the factor per channel of every (face, in shadow)."""
        facing = {"up": 0.75, "near": 0.35, "left": 0.95 * (self.sun_side < 0), "right": 0.95 * (self.sun_side > 0)}
        factors = {}
        for face, direct in facing.items():
            for shadowed in (False, True):
                share = direct * (SHADOW_FACTOR if shadowed else 1.0)
                r, g, b = (a + share * s for a, s in zip(self.ambient, self.sun, strict=True))
                factors[face, shadowed] = (r, g, b)
        return factors


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """Interpolate from colour `a` (share 0) to colour `b` (share 1)."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scale(colour: Colour, factor: float) -> Colour:
    """Brighten (factor > 1) or darken (factor < 1) a colour."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Draw one of the options with equal probability."""
    return options[int(rng.integers(len(options)))]


def steps(start: float, stop: float, step: float) -> list[float]:
    """Return evenly spaced positions in [start, stop) as Python floats, faster than NumPy's scalars."""
    return np.arange(start, stop, step).tolist()


class Canvas:
    """Image and labels of one scene, SUPERSAMPLING times the size asked for until `finish`."""

    def __init__(self, height: int, width: int, view: View, light: Light):
        self.view = view
        self.light = light
        self._size = (height, width)
        self._scale = height * SUPERSAMPLING
        self._centre = width * SUPERSAMPLING / 2 + view.vanishing * self._scale
        shape = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._image = Image.new("RGB", shape)
        self._labels = Image.new("L", shape)
        self._image_draw = ImageDraw.Draw(self._image)
        self._tint_draw = ImageDraw.Draw(self._image, "RGBA")
        self._label_draw = ImageDraw.Draw(self._labels)

    def project(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Project points in metres to pixels of the enlarged image."""
        focal_px, horizon = self.view.focal * self._scale, self.view.horizon * self._scale
        flat = []
        for x, y, z in points:
            per_m = focal_px / (z if z > NEAREST_M else NEAREST_M)
            flat.append((self._centre + x * per_m, horizon + (self.view.eye_m - y) * per_m))
        return flat

    def hazed(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """Blend a colour with the haze of `z` metres and clip it to integers in [0, 255]."""
        r, g, b = blend(colour, self.light.skyline, 1.0 - math.exp(-z / self.light.haze_m))
        return (int(r) if r < 255 else 255, int(g) if g < 255 else 255, int(b) if b < 255 else 255)

    def backdrop(self, picture: np.ndarray, label: int) -> None:
        """Resize an image (h, w, 3) uint8 to the whole canvas, and label all of it."""
        self._image.paste(Image.fromarray(picture).resize(self._image.size, Image.Resampling.BILINEAR))
        self._labels.paste(label, (0, 0, *self._labels.size))

    def polygon(self, points: Sequence[Point], colour: Colour, label: int | None = OTHER) -> None:
        """Fill a polygon in the image and the labels; `label` None leaves the labels as they are."""
        flat = self.project(points)
        self._image_draw.polygon(flat, fill=self.hazed(colour, (points[0][2] + points[len(points) // 2][2]) / 2))
        if label is not None:
            self._label_draw.polygon(flat, fill=label)

    def region(self, points: Sequence[Point], label: int) -> None:
        """Fill a polygon in the labels only."""
        self._label_draw.polygon(self.project(points), fill=label)

    def glaze(self, points: Sequence[Point], colour: Colour, opacity: float) -> None:
        """Blend a polygon (a shadow, a reflection) into the image only; opacity in [0, 1]."""
        r, g, b = colour
        self._tint_draw.polygon(self.project(points), fill=(int(r), int(g), int(b), int(255 * opacity)))

    def disc(self, centre: Point, radii: tuple[float, float], colour: Colour, label: int | None = OTHER) -> None:
        """Fill an ellipse that faces the camera; horizontal and vertical radius in metres."""
        box = self._box(centre, radii)
        self._image_draw.ellipse(box, fill=self.hazed(colour, centre[2]))
        if label is not None:
            self._label_draw.ellipse(box, fill=label)

    def glow(self, centre: Point, radius: float, colour: Colour, opacity: float) -> None:
        """Blend a soft halo of `radius` metres into the image only; opacity in [0, 1]."""
        r, g, b = (int(c) for c in colour)
        for share in (1.0, 0.86, 0.72, 0.58, 0.44, 0.3):
            box = self._box(centre, (radius * share, radius * share))
            self._tint_draw.ellipse(box, fill=(r, g, b, int(255 * opacity / 6)))

    def bar(self, ends: tuple[Point, Point], width: float, colour: Colour, label: int | None = OTHER) -> None:
        """Draw a straight bar of `width` metres, at least 2 * MIN_HALF_WIDTH_PX pixels wide."""
        (x0, y0), (x1, y1) = self.project(ends)
        per_m = self.view.focal * self._scale / 2
        half0 = max(width * per_m / max(ends[0][2], NEAREST_M), MIN_HALF_WIDTH_PX)
        half1 = max(width * per_m / max(ends[1][2], NEAREST_M), MIN_HALF_WIDTH_PX)
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        flat = [
            (x0 + nx * half0, y0 + ny * half0),
            (x1 + nx * half1, y1 + ny * half1),
            (x1 - nx * half1, y1 - ny * half1),
            (x0 - nx * half0, y0 - ny * half0),
        ]
        self._image_draw.polygon(flat, fill=self.hazed(colour, (ends[0][2] + ends[1][2]) / 2))
        if label is not None:
            self._label_draw.polygon(flat, fill=label)

    def wire(self, ends: tuple[Point, Point], colour: Colour, opacity: float) -> None:
        """Draw a thin line in the image only; opacity in [0, 1]."""
        tint = (*self.hazed(colour, (ends[0][2] + ends[1][2]) / 2), int(255 * opacity))
        self._tint_draw.line(self.project(ends), fill=tint, width=max(1, self._scale // 256))

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Downsample to the size asked for and add camera effects to the image.

        Returns:
            (H, W, 3) uint8 RGB image with vignette, uneven exposure and sensor noise; (H, W) uint8 ids of
            `fgseg.data.streets.classes`, sampled without interpolation.
        """
        height, width = self._size
        picture = np.asarray(self._image.reduce(SUPERSAMPLING), dtype=np.float32)
        down, across = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
        # The noise is drawn last: it alone needs more random numbers for a larger image.
        stops, coarseness = rng.normal(0.12, 0.12), rng.uniform(1.0, 3.0)
        blotches = Image.fromarray(rng.normal(1.0, 0.035, (9, 17)).astype(np.float32))
        gain = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)) * np.float32(2.0**stops)
        gain = gain * (1.0 - 0.1 * (down[:, None] ** 2 + across[None, :] ** 2))
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(coarseness)
        exposed = np.clip(picture * gain[:, :, None] + grain, 0, 255).astype(np.uint8)
        return exposed, np.asarray(self._labels)[1::SUPERSAMPLING, 1::SUPERSAMPLING].copy()

    def _box(self, centre: Point, radii: tuple[float, float]) -> list[float]:
        """Return the bounding box (left, top, right, bottom) in pixels of an ellipse given in metres."""
        (u, v), per_m = self.project([centre])[0], self.view.focal * self._scale / max(centre[2], NEAREST_M)
        return [u - radii[0] * per_m, v - radii[1] * per_m, u + radii[0] * per_m, v + radii[1] * per_m]
