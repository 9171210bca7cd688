"""How a picture of any shape becomes the input of a model, in training, evaluation and prediction alike.

A picture whose aspect ratio differs from that of the frames by at most MAX_ASPECT_ERROR is resized to a frame.  For any
other picture `data.fit` decides:

    stretch   it is resized to a frame, which changes its proportions
    pad       it is resized to fit into a frame, which is filled to the right of the picture or below it
    crop      it is resized to cover a frame; training and evaluation take the central part, and prediction takes the
              whole picture, over which a window of the size of a frame slides
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fgseg.config.settings import DataConfig, Fit
from fgseg.labels import VOID

Size = tuple[int, int]
"""Height and width in pixels."""

FILL = 114
"""Grey value of the pixels outside a picture: the mean of ImageNet's channels, about zero after normalisation."""
STRIDE_PX = 4
"""Side of the square of pixels for which a SegFormer computes one logit."""
MIN_STRIDES = 8
"""Side of a model's input in strides, at least: the deepest stage of a SegFormer has a stride of 32 pixels."""
MAX_ASPECT_ERROR = 0.02
"""Relative difference of two aspect ratios up to which they count as equal."""


@dataclass(frozen=True)
class Geometry:
    """The size of the frames of a data set or a model, and how pictures of other shapes become frames."""

    size: Size
    """Of the frames."""
    fit: Fit = "stretch"

    @classmethod
    def of(cls, cfg: DataConfig) -> "Geometry":
        """Return the geometry that the section `data` describes."""
        return cls((cfg.height, cfg.width), cfg.fit)

    def scaled(self, factor: float) -> "Geometry":
        """Return the geometry with frames `factor` times as large, in multiples of STRIDE_PX; unchanged for 1."""
        if factor == 1:
            return self
        height, width = (round_to_stride(side * factor) for side in self.size)
        return replace(self, size=(height, width))

    def resized(self, picture: Size) -> Size:
        """Return the size to which a picture of a size is resized, before it is padded or cut.

        Sides are rounded to whole pixels, at least 1; a side that is larger than the frame's is a multiple of
        STRIDE_PX, as the windows that slide over it demand.
        """
        factors = [side / own for side, own in zip(self.size, picture, strict=True)]
        if self.fit == "stretch" or max(factors) <= (1 + MAX_ASPECT_ERROR) * min(factors):
            return self.size
        if self.fit == "pad":
            height, width = (max(1, round(own * min(factors))) for own in picture)
            return height, width
        covering = (round_to_stride(own * max(factors)) for own in picture)
        height, width = (
            limit if factor == max(factors) else max(limit, side)
            for side, limit, factor in zip(covering, self.size, factors, strict=True)
        )
        return height, width

    def whole(self, picture: np.ndarray) -> np.ndarray:
        """Resize a picture and pad it; nothing is cut off.

        Args:
            picture: an image (H, W, 3) uint8 RGB, resized bilinearly and filled with FILL; or labels (H, W) uint8,
                resized by nearest neighbour and filled with VOID.

        Returns:
            The picture at its place, the upper left corner: of the size `size`; with the fit `crop` of the size
            `resized`, which covers `size`.
        """
        labels = picture.ndim == 2
        height, width = self.resized((picture.shape[0], picture.shape[1]))
        method = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
        resized = np.asarray(Image.fromarray(picture).resize((width, height), method))
        if self.fit != "pad" or (height, width) == self.size:
            return resized
        padded = np.full((*self.size, *picture.shape[2:]), VOID if labels else FILL, np.uint8)
        padded[:height, :width] = resized
        return padded

    def frame(self, picture: np.ndarray) -> np.ndarray:
        """Make a frame of a picture: `whole`, and of the fit `crop` its central part.

        An odd number of rows or columns beyond the frame is cut so that one more goes below or to the right.

        Args:
            picture: (H, W, 3) or (H, W) uint8, as for `whole`.

        Returns:
            (height, width, 3) or (height, width) uint8, of the size `size`.
        """
        whole = self.whole(picture)
        top, left = ((side - limit) // 2 for side, limit in zip(whole.shape, self.size, strict=False))
        return whole[top : top + self.size[0], left : left + self.size[1]]


def round_to_stride(side: float) -> int:
    """Round a side in pixels to a multiple of STRIDE_PX, at least MIN_STRIDES of them."""
    return max(MIN_STRIDES, round(side / STRIDE_PX)) * STRIDE_PX
