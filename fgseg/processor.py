"""How a picture becomes a model's input, in numbers, and as an image processor of Transformers.  Needs no torch."""

from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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
