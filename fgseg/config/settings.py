"""Every setting of one model: name, unit, range, default and meaning."""

from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fgseg.config.errors import ConfigError, check_name
from fgseg.config.label_sets import LABELS_FILE, LabelSet, load_label_set, own_label_set, shipped_keys


class Section(BaseModel):
    """A group of settings: frozen; rejects unknown names, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def restore_yaml_word(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert a bool back to the word that YAML read (`yes`, `on`, `no`, `off`), if the setting accepts the word.

        Raises ValueError if the setting accepts neither the word nor truth values.
        """
        if not isinstance(value, bool) or (annotation := cls.model_fields[info.field_name or ""].annotation) is bool:
            return value
        for word in ("yes", "on") if value else ("no", "off"):
            if word in get_args(annotation):
                return word
        raise ValueError("not a truth value")


Fit = Literal["stretch", "pad", "crop"]
"""How a picture of another aspect ratio becomes a frame, see fgseg/data/geometry.py."""


class DataConfig(Section):
    reader: Literal["streets", "cityscapes", "folder", "hub"] = "streets"
    """Where frames come from: procedural scenes, the Cityscapes layout, images/ + labels/, or a hub data set."""
    root: str | None = None
    """Folder of the data set; for the hub reader a hub id or a saved folder. The streets need none."""
    labels: str = "thin_street"
    """Label set: the name of a file in configs/labels/ (`thin_street`, `cityscapes19`, `streets`) or a path of one."""
    height: int = Field(128, ge=32, le=4096)
    """Height to which frames are resized, in pixels."""
    width: int = Field(256, ge=32, le=8192)
    """Width to which frames are resized, in pixels."""
    fit: Fit = "stretch"
    """How a picture of another aspect ratio becomes a frame: stretch changes its proportions; pad keeps them and adds
    void at the right or below; crop keeps them and cuts off both ends, once and for all (unlike `data.crop`)."""
    crop: str | None = Field(None, examples=["256x512"])
    """Height x width of the training crops in pixels, such as 256x512; by default the whole frame. A model trained on
    crops is evaluated in windows of this size that slide over the frame."""
    train: int = Field(320, ge=1)
    """Frames to train on."""
    val: int = Field(48, ge=1)
    """Frames to validate on after every epoch."""
    test: int = Field(48, ge=0)
    """Frames kept for the final comparison; no search reads them."""
    void: Literal["background", "ignore"] = "background"
    """Treatment of the ids that Cityscapes does not evaluate: background (as in the source), or ignored."""
    rare_class_temperature: float = Field(0.0, ge=0, le=100)
    """Temperature of rare class sampling: training frames with rare classes are drawn more often, the more the lower it
    is (DAFormer: 0.01); 0 draws every frame once per epoch."""
    seed: int = Field(0, ge=0)
    """Seed that selects the frames of each split, and nothing else."""
    cache: str | None = None
    """Folder of decoded frames; by default the user's cache directory. Safe to delete."""
    device: Literal["auto", "gpu", "ram"] = "auto"
    """Memory that holds decoded frames during training; auto is the GPU if they fit into half of the trial's share."""

    def label_set(self) -> LabelSet:
        """Read the label set: that of the folder's labels.yaml if it defines one, else `labels`; raises ConfigError."""
        own = self.own_label_set()
        if own and self.labels != DataConfig.model_fields["labels"].default:
            file = self.labels_file
            raise ConfigError(f"data.labels: got {self.labels}, {file} defines its own classes; remove one of the two")
        return own or load_label_set(self.labels)

    def own_label_set(self) -> LabelSet | None:
        """Read the label set of the folder's labels.yaml; None if it defines none.  Raises ConfigError."""
        return own_label_set(self.labels_file) if self.labels_file else None

    @property
    def labels_file(self) -> Path | None:
        """The labels.yaml of a folder; None with another reader."""
        return Path(expanduser(self.root), LABELS_FILE) if self.reader == "folder" and self.root else None

    @property
    def window(self) -> tuple[int, int] | None:
        """Height and width of `crop` in pixels; None without crops.  Raises ValueError unless it reads HEIGHTxWIDTH."""
        if self.crop is None:
            return None
        height, width = map(int, self.crop.split("x"))
        return height, width


VARIANT_NAMES = ("small", "b0", "b1", "b2", "b3", "b4", "b5")
"""Values of `model.name` that mean random weights."""


class ModelConfig(Section):
    name: str = "small"
    """`small` or `b0`..`b5` (SegFormer from random weights), `streets` (a checkpoint of the size of `small`, trained on
    procedural scenes; no download), a folder of weights, or a hub id."""
    head: Literal["inherit", "new"] = "inherit"
    """Initial classifier: fitted to the checkpoint's classes of the same names, or new (random, as in the source).
    Random weights, and a checkpoint without such classes, begin with a new one in either case."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth: probability of skipping the encoder's last block in training, falling linearly to 0 at the
    first block; by default that of the checkpoint, and 0.1 with random weights."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether training starts from trained weights."""
        return self.name not in VARIANT_NAMES


class TrainConfig(Section):
    epochs: int = Field(5, ge=1)
    """Passes over the training frames."""
    batch_size: int = Field(2, ge=1)
    """Frames per forward pass; of several processes together, whose number must divide it."""
    accumulation: int = Field(1, ge=1)
    """Forward passes per optimizer step."""
    lr: float = Field(6e-5, gt=0, le=1)
    """Learning rate of AdamW after the warm-up; it decays linearly to zero."""
    head_lr_factor: float = Field(1.0, gt=0, le=1000)
    """The learning rate of the decode head is `train.lr`, that of the encoder, times this factor."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the optimizer steps during which the learning rate rises linearly from near zero."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Weight decay of AdamW; none for norms and biases."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per optimizer step of an exponential moving average of the weights, which is evaluated and exported in
    place of the last weights; step t uses at most (1 + t) / (10 + t). 0 is off."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; larger gradients are scaled down to it."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto is fp16 on a GPU, as in the source, and none on the CPU. No mIoU was measured with bf16."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the step, on a GPU into one CUDA graph; auto does so on GPUs if the remaining steps justify it. If it
    fails, the plain step runs."""
    select: Literal["last", "best"] = "last"
    """Epoch whose results and weights count for the trial: the last, or the one with the highest validation mIoU."""
    frame_scores: bool = False
    """Record the mIoU of every validation frame after each epoch; `--pruner wilcoxon` needs and sets it."""
    boundary_scores: bool = False
    """Record the boundary IoU of every class in the validation after each epoch; an `--objective` that names one needs
    and sets it."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Seed of trial 0; trial n uses this seed plus n, unless `--trial-seeds common` is given."""


class LossConfig(Section):
    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the (class-weighted) cross-entropy."""
    ssim: float = Field(0.0, ge=0)
    """Weight of one minus the structural similarity."""
    soft_iou: float = Field(0.0, ge=0)
    """Weight of one minus the soft Jaccard index."""
    lovasz: float = Field(0.0, ge=0)
    """Weight of the Lovász-softmax loss."""
    edge: float = Field(0.0, ge=0)
    """Weight of an auxiliary head that finds the edges of the thin classes; above 0 it is trained, and never
    exported."""
    hard_pixels: float = Field(0.0, ge=0, le=1)
    """Cross-entropy over hard pixels only: those whose true class has a probability below this value, and at least the
    hardest 1/16 of a batch. 0 is off: all pixels."""
    soft_iou_over: Literal["image", "present", "batch"] = "image"
    """Mean of the soft Jaccard index: over all classes of each image, in which absent classes count as correct (as in
    the source), over the classes present in each image, or over those present in the batch, its images summed."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term by name."""
        return self.model_dump(exclude={"hard_pixels", "soft_iou_over"})


class CopyPasteConfig(Section):
    prob: float = Field(0.0, ge=0, le=1)
    """Probability that a training frame receives objects of another frame."""
    mode: Literal["frame", "component"] = "frame"
    """Pasted objects: whole classes of one other frame, or connected components of any frames in their own image
    rows."""
    components: int = Field(4, ge=1, le=16)
    """Largest number of components that a frame receives in the mode `component`; each number is equally likely."""
    without: str | None = None
    """Classes that are never pasted, by key and separated by commas. A key that only another shipped label set has is
    ignored, so that a family fits every label set."""

    @property
    def needs_components(self) -> bool:
        """Whether the connected components of the training labels are pasted."""
        return self.prob > 0 and self.mode == "component"

    @property
    def excluded(self) -> tuple[str, ...]:
        """Keys of the classes that are never pasted."""
        return tuple(key.strip() for key in (self.without or "").split(",") if key.strip())


class AugmentConfig(Section):
    flip_prob: float = Field(0.0, ge=0, le=1)
    """Probability that a training frame is mirrored."""
    scale: float = Field(1.0, ge=1, le=4)
    """Largest factor by which a training frame is enlarged or shrunk, drawn log-uniformly; 1 keeps its size. A random
    part of `data.crop`, or of the frame's size, is cut out; where the frame is smaller it is filled with void."""
    colour: float = Field(0.0, ge=0, le=2)
    """Strength of random changes of brightness, contrast, saturation and hue; 1 has the ranges of mmsegmentation."""


class RunConfig(Section):
    """All settings that determine the training of one model."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict, validate_default=True)
    """Cross-entropy weight of a class of the label set, by its key: `class_weights.traffic_sign`."""
    copy_paste: CopyPasteConfig = CopyPasteConfig()
    augment: AugmentConfig = AugmentConfig()

    @field_validator("class_weights")
    @classmethod
    def weigh_every_class(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        """Give every class of the label set a weight; raises ConfigError for a class that the set lacks."""
        if "data" not in info.data:  # has a mistake of its own
            return weights
        keys = info.data["data"].label_set().keys
        for key in weights:
            check_name(key, keys, f"class_weights.{key}: no such class in data.labels={info.data['data'].labels}")
        return {key: weights.get(key, 1.0) for key in keys}

    @field_validator("copy_paste")
    @classmethod
    def check_excluded(cls, section: CopyPasteConfig, info: ValidationInfo) -> CopyPasteConfig:
        """Raise ConfigError for a class in `copy_paste.without` that neither the label set nor a shipped one has."""
        if "data" in info.data and section.excluded:
            keys = info.data["data"].label_set().keys
            for key in section.excluded:
                if key not in shipped_keys():
                    labels = info.data["data"].labels
                    check_name(key, keys, f"copy_paste.without: no class {key!r} in data.labels={labels}")
        return section

    def label_set(self) -> LabelSet:
        """Read the label set of the data; raises ConfigError."""
        return self.data.label_set()

    def flat(self) -> dict[str, Any]:
        """Return every setting by dotted name."""
        return flatten(self.model_dump())


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted names; raises ConfigError for a name given both nested and dotted."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        inner = flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        if not flat.keys().isdisjoint(inner):
            duplicate = min(inner.keys() & flat.keys())
            raise ConfigError(f"{duplicate}: is given twice, dotted and in its section; keep one")
        flat |= inner
    return flat


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Complete recorded settings, by dotted name: one that did not exist when they were recorded has its default.

    Only `model.head` differs: before it existed, a checkpoint's head was replaced by a new one.  Class weights are not
    completed, since their names depend on the label set.
    """
    settings = flatten(RunConfig().model_dump(exclude={"class_weights"})) | dict(recorded)
    if "model.head" not in recorded and settings["model.name"] not in VARIANT_NAMES:
        settings["model.head"] = "new"
    return settings


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted names into nested sections; the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested
