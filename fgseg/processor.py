"""How a picture becomes a model's input, in numbers, and as an image processor of Transformers.  Needs no torch."""

from typing import Any

from fgseg.data.image_files import IMAGENET_MEAN, IMAGENET_STD

BILINEAR = 2
"""PIL's number of the filter."""


def processor(height: int, width: int) -> dict[str, Any]:
    """The image processor that does what the readers and `normalise` do: resize, divide by 255, normalise.

    `do_reduce_labels` is off: label 0 is the background, a class like the others.
    """
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_reduce_labels": False,
    }
