"""Augmentation of batches. All randomness comes from the generator; no call synchronises with a GPU."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fgseg.data.geometry import FILL
from fgseg.labels import VOID

LABEL_VALUES = 256
"""Values of a uint8 label."""
CHANGE_PROB = 0.5
"""Probability of each of the four changes of `distort_colours`, as in mmsegmentation."""
BRIGHTNESS, CONTRAST, SATURATION, HUE_DEGREES = 32.0, 0.5, 0.5, 36.0
"""Largest changes at strength 1, as in mmsegmentation: grey values, factors around 1, and degrees of the colour circle
(18 of OpenCV's 180 steps)."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour (ITU-R BT.601)."""


def copy_paste(  # noqa: PLR0917  two pairs, and how to mix them
    images: Tensor,
    labels: Tensor,
    source_images: Tensor,
    source_labels: Tensor,
    foreground: range,
    prob: float,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Paste whole classes of one source frame onto each image, with their labels.

    For each image by itself: with probability `prob` its source is pasted. The source is mirrored with probability one
    half. If k foreground classes are present in it, n is drawn uniformly from 1..k, and n of the k classes are drawn
    without replacement. All their pixels are pasted with a hard mask. With k = 0 the image stays as it is.

    Args:
        images: (B, 3, H, W), any dtype.
        labels: (B, H, W) uint8, a class or VOID.
        source_images: (B, 3, H, W) of the images' dtype; frame i is the source for image i.
        source_labels: (B, H, W) uint8.
        foreground: the F labels that may be pasted, consecutive; background and void are not among them.
        prob: in [0, 1].
        generator: on the tensors' device. Each call draws B x (3 + F) numbers from it, also with prob 0.

    Returns:
        New images and labels of the same shapes and dtypes. The arguments are left as they are.

    Source: seed, approach 2; Ghiasi et al., "Simple Copy-Paste", CVPR 2021.
    """
    draws = torch.rand(len(labels), 3 + len(foreground), generator=generator, device=labels.device)
    pasted, mirrored = draws[:, 0] < prob, draws[:, 1] < 0.5
    source_images, source_labels = _mirror(source_images, source_labels, mirrored)
    chosen = _choose(source_labels, foreground, draws[:, 2], draws[:, 3:]) & pasted[:, None]
    by_label = chosen.new_zeros(len(labels), LABEL_VALUES)
    by_label[:, foreground.start : foreground.stop] = chosen
    mask = by_label.gather(1, source_labels.flatten(1).long()).view_as(labels)
    return _select(mask[:, None], source_images, images), _select(mask, source_labels, labels)


def flip(images: Tensor, labels: Tensor, prob: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mirror each image and its labels horizontally with probability prob.

    Args:
        images: (B, 3, H, W), any dtype.
        labels: (B, H, W), any dtype.
        prob: in [0, 1].
        generator: on the tensors' device. Each call draws B numbers from it.

    Returns:
        New images and labels of the same shapes and dtypes. The arguments are left as they are.
    """
    return _mirror(images, labels, torch.rand(len(labels), generator=generator, device=labels.device) < prob)


@dataclass(frozen=True)
class ComponentSource:
    """One connected component for each image of a batch; a component has one class."""

    images: Tensor
    """(B, 3, H, W): the frames that contain the components."""
    masks: Tensor
    """(B, H, W) bool: the pixels of the components."""
    labels: Tensor
    """(B,) uint8."""
    left: Tensor
    """(B,) int64: first column of each component."""
    right: Tensor
    """(B,) int64: column after the last one."""


def paste_components(  # noqa: PLR0917  a batch, what is pasted, and how often
    images: Tensor, labels: Tensor, sources: Iterable[ComponentSource], most: int, prob: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Paste connected components onto each image in their own rows, with their labels.

    For each image by itself: with probability `prob` it receives the first n sources, n uniform in 1..`most`.
    Each component is mirrored with probability one half and moved to a uniform column where it fits as a whole.  Rows
    stay, since height in the image and size of an object depend on each other.

    Args:
        images: (B, 3, H, W) uint8.
        labels: (B, H, W) uint8.
        sources: `most` of them, of the images' size; a later one covers an earlier one.
        most: at least 1.
        prob: in [0, 1].
        generator: on the tensors' device. Each call draws B x (2 + 2 `most`) numbers from it.

    Returns:
        New images and labels of the same shapes. The arguments are left as they are.

    Source: Motoi et al., IGARSS 2024 (arXiv 2404.05693), for connected components as pasted objects; Dvornik, Mairal
    and Schmid, "Modeling Visual Context is Key to Augmenting Object Detection Datasets", ECCV 2018, for the harm of
    objects in unlikely places.
    """
    width = labels.shape[-1]
    draws = torch.rand(len(labels), 2 + 2 * most, generator=generator, device=labels.device)
    number = torch.where(draws[:, 0] < prob, (draws[:, 1] * most).floor() + 1, 0.0)
    columns = torch.arange(width, device=labels.device)
    images = images.contiguous()
    for k, source in enumerate(sources):
        chosen = number > k
        if labels.device.type == "cpu" and not chosen.any():  # on a GPU this would wait for it
            break
        mirrored = draws[:, 2 + 2 * k] < 0.5
        left = torch.where(mirrored, width - source.right, source.left)
        room = width - (source.right - source.left)
        target = torch.minimum((draws[:, 3 + 2 * k] * (room + 1)).long(), room)
        # Column of the mirrored source, then of the source itself, that comes to each column of the image.
        at = (columns - (target - left)[:, None]) % width
        at = torch.where(mirrored[:, None], width - 1 - at, at)
        mask = _take_columns(source.masks, at) & chosen[:, None, None]
        images = _select(mask[:, None], _take_columns(source.images, at), images)
        labels = _select(mask, source.labels[:, None, None], labels)
    return images, labels


def _select(mask: Tensor, first: Tensor | int, second: Tensor) -> Tensor:
    """Return `first` where the mask is true, else `second`: as torch.where, which takes ten times as long for uint8."""
    if second.dtype != torch.uint8:
        return torch.where(mask, first, second)
    bits = -mask.view(torch.uint8)
    return second ^ ((second ^ first) & bits)


def _take_columns(values: Tensor, columns: Tensor) -> Tensor:
    """Select columns (B, V) int64 of values (B, ..., W) for each element of a batch: (B, ..., V)."""
    index = columns.view(len(columns), *[1] * (values.dim() - 2), -1)
    return values.gather(-1, index.expand(*values.shape[:-1], -1))


def scale_and_crop(
    images: Tensor, labels: Tensor, scale: float, size: tuple[int, int], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Scale each image and its labels by a random factor and cut out a random part.

    The factor is log-uniform in [1 / scale, scale].  The part is uniform among those within the scaled image; along a
    side where the scaled image is smaller than the part, the image lies at a uniform place within the part.

    Args:
        images: (B, 3, H, W) uint8, scaled bilinearly.
        labels: (B, H, W) uint8, scaled by nearest neighbour.
        scale: at least 1; 1 copies pixels without interpolation.
        size: height and width of the part in pixels.
        generator: on the tensors' device. Each call draws B x 3 numbers from it.

    Returns:
        Images (B, 3, *size) uint8, FILL outside the scaled image, and labels (B, *size) uint8, VOID there.
    """
    draws = torch.rand(len(labels), 3, generator=generator, device=labels.device)
    factors = torch.exp((2 * draws[:, 0] - 1) * math.log(scale))
    height, width = labels.shape[1:]
    y = _source_pixels(height, size[0], factors, draws[:, 1])
    x = _source_pixels(width, size[1], factors, draws[:, 2])
    visible = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    rows, columns = y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)
    nearest = _take_columns(labels, columns).gather(1, rows[:, :, None].expand(-1, -1, size[1]))
    # grid_sample expects coordinates from -1 to 1 between the outer edges of the image.
    grid = torch.stack(torch.broadcast_tensors((2 * x / width - 1)[:, None], (2 * y / height - 1)[:, :, None]), -1)
    pixels = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _select(~visible[:, None], FILL, pixels.round_().to(torch.uint8)), _select(~visible, VOID, nearest)


def _source_pixels(length: int, part: int, factors: Tensor, places: Tensor) -> Tensor:
    """Return the coordinate in the unscaled image, in pixels from its edge, of the centre of each pixel of the part.

    Args:
        length: side of the unscaled image in pixels.
        part: side of the part in pixels.
        factors: (B,) scale of each image.
        places: (B,) in [0, 1): place of the part within the scaled image, or of the image within the part.

    Returns:
        (B, part) float32; outside [0, length) where the part lies outside the scaled image.
    """
    room = factors * length - part
    # A whole number of pixels, so that an image of scale 1 is copied without interpolation.
    offset = (places * (room.abs().floor() + 1)).floor() * room.sign()
    centres = torch.arange(part, device=factors.device) + 0.5
    return (centres + offset[:, None]) / factors[:, None]


def distort_colours(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, each with probability CHANGE_PROB.

    Brightness adds up to `strength` x BRIGHTNESS, contrast and saturation multiply by 1 +- `strength` x CONTRAST or
    SATURATION, and hue turns the colours by up to `strength` x HUE_DEGREES, all uniformly.  Unlike mmsegmentation,
    which converts to HSV, saturation is the distance from the pixel's luma, and hue a rotation around the grey axis of
    RGB: then all changes together are one matrix per image.

    Args:
        images: (B, 3, H, W) uint8.
        strength: in [0, 2]; 1 has mmsegmentation's ranges.
        generator: on the images' device. Each call draws B x 8 numbers from it.

    Returns:
        (B, 3, H, W) uint8, rounded and clipped to [0, 255].

    Source: PhotoMetricDistortion of mmsegmentation; Liu et al., "SSD", ECCV 2016.
    """
    draws = torch.rand(len(images), 2, 4, generator=generator, device=images.device)
    change = torch.where(draws[:, 0] < CHANGE_PROB, (2 * draws[:, 1] - 1) * strength, 0.0)
    brightness, contrast, saturation, hue = change.unbind(1)
    factor = 1 + contrast * CONTRAST
    matrix = colour_matrix(factor, 1 + saturation * SATURATION, hue * math.radians(HUE_DEGREES))
    added = (factor * brightness * BRIGHTNESS)[:, None, None]
    changed = torch.baddbmm(added, matrix, images.flatten(2).float())
    return changed.clamp_(0, 255).round_().to(images.dtype).view(images.shape)


def colour_matrix(contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Return the matrices (B, 3, 3) that turn, then saturate, then scale RGB: factors (B,), and angles (B,) in radians.

    A grey pixel is only scaled: all rows of a matrix have the sum `contrast`.
    """
    cosine, third, sine = hue.cos(), (1 - hue.cos()) / 3, hue.sin() / math.sqrt(3)
    same, next_channel, last_channel = cosine + third, third - sine, third + sine
    rows = (same, next_channel, last_channel), (last_channel, same, next_channel), (next_channel, last_channel, same)
    rotation = torch.stack([torch.stack(row, 1) for row in rows], 1)
    red, green, blue = rotation.unbind(1)
    luma = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
    return contrast[:, None, None] * (luma + saturation[:, None, None] * (rotation - luma))


def _mirror(images: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Flip images (B, 3, H, W) and labels (B, H, W) horizontally where `which` (B,) bool is true."""
    return (
        _select(which[:, None, None, None], images.flip(-1), images),
        _select(which[:, None, None], labels.flip(-1), labels),
    )


def _choose(labels: Tensor, foreground: range, amount: Tensor, order: Tensor) -> Tensor:
    """Choose 1..k of the k foreground classes in each image.

    Args:
        labels: (B, H, W) uint8, a class or VOID.
        foreground: the F labels.
        amount: (B,) float32 uniform in [0, 1), decides the number of classes.
        order: (B, F) float32 uniform in [0, 1), decides the classes: the present ones with the smallest values.

    Returns:
        (B, F) bool. Where k is 0 one class is chosen, which has no pixels to paste.
    """
    present = torch.stack([(labels == label).flatten(1).any(1) for label in foreground], 1)
    number = (amount * present.sum(1)).floor() + 1
    # Absent classes rank last, behind any number below 1.
    rank = torch.where(present, order, 1.0).argsort(1).argsort(1)
    return rank < number[:, None]
