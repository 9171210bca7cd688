"""The model card of an exported model: what it was trained on and how, how good it is, and who may use it."""

import math
from pathlib import Path

from fgseg.config.settings import RunConfig
from fgseg.labels import CLASSES, FOREGROUND
from fgseg.model.pretrained import VARIANTS, is_folder
from fgseg.results import EpochResult, format_iou

HEAD = """---
library_name: transformers
pipeline_tag: image-segmentation
license: {licence}
tags: [semantic-segmentation, segformer, street-view]
---
# {title}

A SegFormer that tells {classes} apart in street-view pictures. {origin}

```python
from transformers import pipeline
masks = pipeline("image-segmentation", model="FOLDER")("photo.jpg")
```

The image processor resizes to {height}x{width} pixels, as in training, which squeezes pictures of another shape.
`python -m fgseg.predict FOLDER photo.jpg --out DIR` keeps their shape and cuts large ones into tiles.
"""

ORIGINS = {
    "streets": "**Synthetic data**: procedural street scenes drawn by a program. The scores say how well the model "
    "reads such scenes, and nothing about photographs; do not use it on those.",
    "cityscapes": "Cityscapes, or a data set in its layout. Cityscapes is for non-commercial research.",
    "folder": "A data set of the user's own, read by its table of ids.",
    "hub": "A Hugging Face data set with the ids of Cityscapes.",
}
CAUTION = """A search chooses among its trials by these very frames, so they flatter.  `python -m search.compare` judges
on others."""
PLACES = ("data.root", "data.cache", "data.device", "model.name")
"""Settings that name places of one machine; they are nobody's business where the model goes."""


def model_card(title: str, origin: str, run: RunConfig, result: EpochResult) -> str:
    """The card in the form of the Hugging Face hub: Markdown below a YAML header.

    Args:
        title: name of the model.
        origin: a sentence on where it comes from, such as study and trial.
        run: all settings of its training.
        result: the epoch whose weights it has.
    """
    classes = ", ".join(c.name for c in CLASSES)
    data = run.data
    head = HEAD.format(
        licence=licence_id(run),
        title=title,
        classes=classes,
        origin=origin,
        height=data.height,
        width=data.width,
    )
    sections = {
        "Licence": licence(run.model.name),
        "Data": f"{origin_of(run)} {data.train} frames of {data.height}x{data.width} to train on, {data.val} to "
        "validate on.",
        f"Scores on the validation frames, epoch {result.epoch}": f"{score_table(result)}\n\n{CAUTION}",
        "Settings": settings_table(run),
    }
    return "\n".join([head, *(f"## {name}\n\n{text}\n" for name, text in sections.items())])


def origin_of(run: RunConfig) -> str:
    """What the frames are, in a sentence; a data set on the hub is named, a folder of one machine is not."""
    root = run.data.root
    if run.data.reader == "hub" and root and not Path(root).expanduser().exists():
        return f"The Hugging Face data set `{root}`, with the ids of Cityscapes; its licence holds."
    return ORIGINS[run.data.reader]


def licence_id(run: RunConfig) -> str:
    """The hub's name of the licence; `other` where somebody else's weights or data have a say."""
    return "apache-2.0" if run.model.name in VARIANTS and run.data.reader == "streets" else "other"


def licence(name: str) -> str:
    """What the origin of the first weights (the setting `model.name`) means for the use of the model."""
    if name in VARIANTS:
        return "Trained from random weights: no other model's licence applies. That of the training data may."
    if is_folder(name):
        return (
            f"Fine-tuned from the weights in a folder `{Path(name).name}`, whose licence it inherits. If they are, or "
            "derive from, one of NVIDIA's SegFormer checkpoints, it is for **non-commercial use only**."
        )
    if name.startswith("nvidia/"):
        return (
            f"Fine-tuned from `{name}`: **for non-commercial use only**, by NVIDIA's Source Code License for "
            "SegFormer, which models derived from its checkpoints inherit."
        )
    return f"Fine-tuned from `{name}`, whose licence it inherits."


def score_table(result: EpochResult) -> str:
    """IoU of each class, and their mean without the background."""
    rows = [(c.name, result.iou.get(c.key, math.nan)) for c in FOREGROUND]
    lines = [f"| {name} | {format_iou(iou)} |" for name, iou in [*rows, ("**mIoU**", result.miou)]]
    return "\n".join(["| class | IoU |", "| :--- | ---: |", *lines])


def settings_table(run: RunConfig) -> str:
    """Every setting but the places on a machine."""
    shown = {key: value for key, value in run.flat().items() if key not in PLACES}
    return "\n".join(["| setting | value |", "| :--- | ---: |", *(f"| `{k}` | {v} |" for k, v in shown.items())])
