"""Copy-paste and flips of batches. All randomness comes from the generator; no call synchronises with a GPU."""

import torch
from torch import Generator, Tensor

LABEL_VALUES = 256
"""Values of a uint8 label."""


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
    return torch.where(mask[:, None], source_images, images), torch.where(mask, source_labels, labels)


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


def _mirror(images: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Flip images (B, 3, H, W) and labels (B, H, W) horizontally where `which` (B,) bool is true."""
    return (
        torch.where(which[:, None, None, None], images.flip(-1), images),
        torch.where(which[:, None, None], labels.flip(-1), labels),
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
