"""Every setting of one model: names, units, ranges and defaults; and the reading of settings from files and flags."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from fgseg.mistakes import ConfigError, check_name, explain


class Section(BaseModel):
    """A group of settings: frozen, and strict about names and finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def mend_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `no` and `on` as truth values: give settings that have such words the word, others an error."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not isinstance(value, bool) or annotation is bool:
            return value
        for word in ("yes", "on") if value else ("no", "off"):
            if word in get_args(annotation):
                return word
        raise ValueError("not a truth value")


class DataConfig(Section):
    reader: Literal["streets", "cityscapes", "folder", "hub"] = "streets"
    """Where frames come from: procedural scenes, the Cityscapes layout, images/ + labels/, or a hub data set."""
    root: str | None = None
    """Folder of the data set; for the hub reader a hub id or a saved folder. The streets need none."""
    height: int = Field(128, ge=32, le=4096)
    """Height to which frames are resized, in pixels."""
    width: int = Field(256, ge=32, le=8192)
    """Width to which frames are resized, in pixels."""
    train: int = Field(320, ge=1)
    """Frames to train on."""
    val: int = Field(48, ge=1)
    """Frames to validate on after every epoch."""
    test: int = Field(48, ge=0)
    """Frames kept for the final comparison; no search sees them."""
    void: Literal["background", "ignore"] = "background"
    """What becomes of the ids that Cityscapes does not evaluate: background (as in the source) or left out."""
    seed: int = Field(0, ge=0)
    """Decides which frames are drawn for each split, and nothing else."""
    cache: str | None = None
    """Folder of decoded frames; by default the user's cache directory. Safe to delete."""
    device: Literal["auto", "gpu", "ram"] = "auto"
    """Where decoded frames wait during training; auto is the GPU where they fit into half of what the trial may use."""


class ModelConfig(Section):
    name: str = "small"
    """`small` or `b0`..`b5` (SegFormer from random weights), a folder of weights, or a hub id."""


class TrainConfig(Section):
    epochs: int = Field(5, ge=1)
    """Passes over the training frames."""
    batch_size: int = Field(2, ge=1)
    """Frames per forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes per optimizer step."""
    lr: float = Field(6e-5, gt=0, le=1)
    """Learning rate of AdamW at the start; it falls linearly to zero."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision; auto is fp16 on a GPU, as in the source, and none on the CPU. bf16 was not compared in mIoU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step, on a GPU into one CUDA graph; auto is on on a GPU. Where it fails, it does without."""
    select: Literal["last", "best"] = "last"
    """Which epoch stands for the trial: its last, or the one with the highest validation mIoU."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Seed of trial 0; trial n trains with this plus n."""


class LossConfig(Section):
    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the (class-weighted) cross-entropy."""
    ssim: float = Field(0.0, ge=0)
    """Weight of one minus the structural similarity."""
    soft_iou: float = Field(0.0, ge=0)
    """Weight of one minus the soft Jaccard index."""
    lovasz: float = Field(0.0, ge=0)
    """Weight of the Lovász-softmax loss."""


class ClassWeightsConfig(Section):
    background: float = Field(1.0, gt=0)
    """Cross-entropy weight of background."""
    fence: float = Field(1.0, gt=0)
    """Cross-entropy weight of fence."""
    car: float = Field(1.0, gt=0)
    """Cross-entropy weight of car."""
    vegetation: float = Field(1.0, gt=0)
    """Cross-entropy weight of vegetation."""
    pole: float = Field(1.0, gt=0)
    """Cross-entropy weight of pole."""
    traffic_sign: float = Field(1.0, gt=0)
    """Cross-entropy weight of traffic sign."""
    traffic_light: float = Field(1.0, gt=0)
    """Cross-entropy weight of traffic light."""


class CopyPasteConfig(Section):
    prob: float = Field(0.0, ge=0, le=1)
    """Probability that a training frame receives objects of another one."""


class AugmentConfig(Section):
    flip_prob: float = Field(0.0, ge=0, le=1)
    """Probability that a training frame is mirrored."""


class RunConfig(Section):
    """All that determines the training of one model."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    class_weights: ClassWeightsConfig = ClassWeightsConfig()
    copy_paste: CopyPasteConfig = CopyPasteConfig()
    augment: AugmentConfig = AugmentConfig()

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name."""
        return flatten(self.model_dump())


@dataclass(frozen=True)
class Layer:
    """Settings under their dotted names, and where they were written, for error messages."""

    origin: str
    values: Mapping[str, Any]


def build(layers: Sequence[Layer], whole: bool = True) -> RunConfig:
    """Lay settings over each other, later ones on top, and check the result.

    Args:
        layers: from below.
        whole: whether these are all; else the weights of the loss may come from layers that are not there yet.

    Raises:
        ConfigError: an unknown name (the nearest one is offered), a wrong type or a value out of range.
    """
    merged = {key: value for layer in layers for key, value in layer.values.items()}
    origins = {key: layer.origin for layer in layers for key in layer.values}
    known = RunConfig().flat()
    for key in merged:
        check_name(key, known, f"{origins[key]}: {key}: no such setting")
    try:
        run = RunConfig.model_validate(nest(merged))
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, origins)) from None
    if whole and not any(run.loss.model_dump().values()):
        raise ConfigError("loss: every weight is 0, at least one must be above 0; set loss.cross_entropy, for example")
    if run.data.reader != "streets" and run.data.root is None:
        raise ConfigError(
            f"data.root: got nothing, the reader {run.data.reader} needs a folder; add --set data.root=DIR"
        )
    return run


def check_processes(run: RunConfig, processes: int) -> None:
    """Raise ConfigError unless so many processes can train one model with these settings."""
    if run.train.batch_size % processes:
        raise ConfigError(
            f"train.batch_size: got {run.train.batch_size}, must be a multiple of {processes}, as each of {processes} "
            "processes takes an equal part of every batch; change it, or the number of processes"
        )
    if processes > 1 and run.train.compile == "on":
        raise ConfigError(
            f"train.compile: got on, the step of {processes} processes is not compiled; use auto or one process"
        )


def read_layer(path: Path, skip: str | None = None) -> Layer:
    """The settings of a YAML file under their dotted names, without the section `skip`.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    content = read_yaml(path)
    return Layer(str(path), flatten({k: v for k, v in content.items() if k != skip}))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError where there is none."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); name a YAML file"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", -1) + 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}:{line}: {problem}; a settings file is a YAML mapping") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: got {type(content).__name__}, must be a mapping of sections such as `train:`")
    return content


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, for which a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} is given twice", problem_mark=node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """What a YAML text means; raises YAMLError, and ValueError for what looks like a date or number and is none."""
    content = yaml.load(text, StrictLoader)
    json.dumps(content, default=str, skipkeys=True)  # an anchor that holds itself is a ValueError here
    return content


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` texts, the values as YAML.

    Raises:
        ConfigError: a text without `=` or a value that is not YAML.
    """
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: must read key=value, such as --set train.epochs=3")
        try:
            values[key.strip()] = load_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"--set {text}: the value is not YAML; quote it, as in --set '{key}=\"...\"'") from None
    return values


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn sections within sections into dotted names; raises ConfigError for a name that is given in both forms."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        found = flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        if doubled := found.keys() & flat.keys():
            raise ConfigError(f"{min(doubled)}: is given twice, dotted and in its section; keep one")
        flat |= found
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested


PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What may become the name of a folder: no slash, no leading dot."""
