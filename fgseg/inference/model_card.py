"""The model card of an exported model: data, settings, scores and licence."""

from pathlib import Path

from fgseg.config.label_sets import LABELS_FILE, load_label_set
from fgseg.config.settings import DataConfig, RunConfig
from fgseg.labels import display_name
from fgseg.model.pretrained import NAMES, SHIPPED, VARIANTS, is_folder
from fgseg.results import EpochResult, format_iou
from fgseg.tables import Row, Table

ORIGINS = {
    "streets": "**Synthetic data**: procedural street scenes drawn by a program. The scores say how well the model "
    "reads such scenes, and nothing about photographs; do not use it on those.",
    "cityscapes": "Cityscapes, or a data set in its layout. Cityscapes is for non-commercial research.",
    "folder": "A data set of the user's own, read by its table of ids.",
    "hub": "A Hugging Face data set with the ids of Cityscapes.",
}
MACHINE_SETTINGS = ("data.root", "data.cache", "data.device", "model.name")
"""Settings that name paths or devices of one machine; the card, which may be published, leaves them out."""


def model_card(title: str, origin: str, run: RunConfig, result: EpochResult) -> str:
    """Fill `templates/model_card.md.j2`, the card of a Hugging Face model: Markdown below a YAML header.

    Args:
        title: name of the model.
        origin: a sentence that names the model's study and trial.
        run: all settings of the model's training.
        result: the epoch of the model's weights.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # Markdown, so nothing is escaped as HTML
        loader=PackageLoader("fgseg.inference"), autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("model_card.md.j2").render(
        title=title,
        origin=origin,
        classes=", ".join(map(display_name, run.class_weights)),
        data=run.data,
        licence_id=licence_id(run),
        licence=licence(run.model.name),
        data_origin=data_origin(run),
        epoch=result.epoch,
        scores=class_table(result).to_markdown(),
        settings=settings_table(run).to_markdown(),
    )


def data_origin(run: RunConfig) -> str:
    """Describe the data set in a sentence; names a data set of the hub, but no folder of a machine."""
    root = run.data.root
    if run.data.reader == "hub" and root and not Path(root).expanduser().exists():
        return f"The Hugging Face data set `{root}`, with the ids of Cityscapes; its licence holds."
    return ORIGINS[run.data.reader]


def licence_id(run: RunConfig) -> str:
    """Return the hub's id of the licence; `other` if the licence of other weights or data applies."""
    return "apache-2.0" if run.model.name in NAMES and run.data.reader == "streets" else "other"


def licence(name: str) -> str:
    """Describe the licence that follows from the initial weights.

    Args:
        name: the setting `model.name`.
    """
    if name in VARIANTS:
        return "Trained from random weights: no other model's licence applies. That of the training data may."
    if name in SHIPPED:
        return f"Fine-tuned from the checkpoint `{name}` of fgsearch, which has the licence of fgsearch: Apache 2.0."
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


def class_table(result: EpochResult) -> Table:
    """List the IoU of each class, and the mean over the classes without the background."""
    rows = [Row([display_name(key), format_iou(value)]) for key, value in result.iou.items()]
    return Table("", ["class", "IoU"], [*rows, Row(["mIoU", format_iou(result.miou)], "strong")])


def settings_table(run: RunConfig) -> Table:
    """List every setting but those in MACHINE_SETTINGS."""
    values = {key: value for key, value in run.flat().items() if key not in MACHINE_SETTINGS}
    values["data.labels"] = label_set_name(run)
    return Table("", ["setting", "value"], [Row([f"`{key}`", str(value)]) for key, value in values.items()])


def label_set_name(run: RunConfig) -> str:
    """Return `data.labels`, or the file that defined the classes instead; it may be absent by now."""
    default = DataConfig.model_fields["labels"].default
    own = run.data.labels == default and tuple(run.class_weights) != load_label_set(default).keys
    return f"{LABELS_FILE} of data.root" if own else run.data.labels
