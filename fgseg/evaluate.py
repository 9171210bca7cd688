# PYTHON_ARGCOMPLETE_OK
"""Measure the IoU of each class on a split: `python -m fgseg.evaluate MODEL --config FILE [--split test]`.

The classes of a SegFormer with other classes are mapped by their names; the background is everything else.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.cli import DONE, Parser, add_config_options, add_json_option, add_model_options, run_command
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, parse_assignments, read_layer
from fgseg.config.settings import DataConfig, RunConfig
from fgseg.data import check as check_data
from fgseg.data import load_splits
from fgseg.data.geometry import Geometry, Size
from fgseg.inference.trained_model import WHERE, TrainedModel, labels_by_name, open_trained_model
from fgseg.labels import display_name
from fgseg.results import format_iou, mean_iou, none_if_nan, nulls_for_nans, split_metrics
from fgseg.storage.store import create_folder
from fgseg.tables import Row, Table

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Scores:
    """Scores of a model on a split."""

    miou: float
    """Mean IoU over the foreground classes that are not NaN, in [0, 1]."""
    classes: dict[str, dict[str, float]]
    """By class key: `iou`, `precision` and `recall` in [0, 1]; NaN where undefined."""
    confusion: list[list[int]]
    """Pixel counts (C, C); rows are the truth, columns the prediction, both in the order of the labels."""


def score(found: TrainedModel, run: RunConfig, split: str = "val", device: str = "cpu") -> Scores:
    """Evaluate a model on a split as training evaluates it on the validation frames, with the same precision.

    Args:
        found: the model.
        run: its data set, geometry (size and `data.fit`), window (`data.crop`) and precision are used.
        split: train, val or test.
        device: a device of torch, such as cpu or cuda:0.

    Raises:
        ConfigError: the data or the model cannot be used.
    """
    import torch

    from fgseg.data.device_frames import load_to_device
    from fgseg.inference.trained_model import load_trained
    from fgseg.metrics.evaluator import evaluate
    from fgseg.metrics.iou import class_iou, miou
    from fgseg.model.head_transfer import load_grouped

    frames = load_to_device({split: load_splits(run.data, (split,))[split]}, run.data.device, torch.device(device))[
        split
    ]
    known = run.label_set()
    labels = labels_by_name(str(found.folder), found, known)
    model: nn.Module = (
        load_trained(found, device)
        if labels is None
        else (load_grouped(found.folder, labels, known.num_classes, WHERE).to(device))
    )
    with autocast(run.train.precision, device):
        confusion = evaluate(model, frames, window=run.data.window).sum(0)
    iou, hits = class_iou(confusion, known), confusion.diagonal().double()
    precision, recall = (hits / confusion.sum(0)).tolist(), (hits / confusion.sum(1)).tolist()
    classes = {
        c.key: {"iou": iou[c.key], "precision": precision[c.label], "recall": recall[c.label]} for c in known.foreground
    }
    return Scores(miou(iou), classes, confusion.tolist())


def autocast(precision: str, device: str) -> "torch.autocast":
    """Return the autocast context in which training with `train.precision` validates on this device."""
    import torch

    from fgseg.training.trainer import resolve_precision

    kind = resolve_precision(precision, torch.device(device))
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


def geometry_note(name: str, found: TrainedModel, data: DataConfig) -> str:
    """Return a line if a model stores another geometry or window than it is evaluated with; "" if it does not."""
    stored = found.geometry
    used = Geometry.of(data)
    if stored is None or (stored, found.window) == (used, data.window):
        return ""
    own, other = describe_input(stored, found.window), describe_input(used, data.window)
    return f"{name} expects {own}; the configuration evaluates it on {other}"


def describe_input(geometry: Geometry, window: Size | None) -> str:
    """Describe the frames of a model, and the windows in which it sees them."""
    size = "x".join(map(str, geometry.size))
    return f"frames of {size} by data.fit={geometry.fit}" + (
        f" in windows of {window[0]}x{window[1]}" if window else ""
    )


def class_table(scores: Scores, title: str) -> Table:
    """List the scores by class, the mIoU last; "-" where precision or recall is not defined."""
    rows = []
    for key, found in scores.classes.items():
        others = ("-" if math.isnan(found[name]) else format_iou(found[name]) for name in ("precision", "recall"))
        rows.append(Row([display_name(key), format_iou(found["iou"]), *others]))
    rows.append(Row(["mIoU", format_iou(scores.miou), "", ""], "strong"))
    return Table(title, ["class", "IoU", "precision", "recall"], rows)


def to_json(scores: Scores, split: str, run: RunConfig) -> str:
    """Return the scores with split and data settings as JSON, NaN as null; `metrics` has the names of MLflow."""
    classes = {key: nulls_for_nans(values) for key, values in scores.classes.items()}
    data = run.data.model_dump(exclude={"root", "cache", "device"})
    iou = {key: found["iou"] for key, found in scores.classes.items()}
    thin = mean_iou(iou[c.key] for c in run.label_set().foreground if c.thin)
    metrics = split_metrics(split, iou, thin, scores.miou)
    own = {"miou": none_if_nan(scores.miou), "classes": classes, "split": split, "data": data, "metrics": metrics}
    return json.dumps(asdict(scores) | own, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, evaluate_model, arguments)


def evaluate_model(options: argparse.Namespace) -> int:
    """Print the scores of the model, and write them to --out; raises ConfigError, OSError."""
    run = build([read_layer(find_file(options.config), skip="search"), Layer("--set", parse_assignments(options.set))])
    if options.split == "test" and run.data.test == 0:
        raise ConfigError("--split: there are no test frames; add --set data.test=N, or use --split val")
    if options.out and options.out.is_dir():
        raise ConfigError(f"--out: {options.out} is a folder; name a file")
    check_data(run.data)
    if options.out:
        create_folder(options.out.absolute().parent, "--out")
    with open_trained_model(options.model) as found:
        labels = labels_by_name(options.model, found, run.label_set())
        text = sys.stderr if options.json else sys.stdout
        if note := geometry_note(options.model, found, run.data):
            print(note, file=text)
        absent = [c.name for c in run.label_set().foreground if labels and c.label not in labels]
        if absent:
            print(f"{options.model} has no class {', no class '.join(absent)}: IoU 0", file=text)
        from fgseg.devices import find_device  # imports torch, which takes seconds: mistakes are reported before

        scores = score(found, run, options.split, find_device(options.device))
    document = to_json(scores, options.split, run)
    if options.out:
        options.out.write_text(document, encoding="utf-8")
    if options.json:
        print(document)
        return DONE
    from rich.console import Console

    size = f"{getattr(run.data, options.split)} frames of {run.data.height}x{run.data.width}"
    Console().print(class_table(scores, f"{options.model} on {options.split}: {size}").to_rich(boxed=True))
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.evaluate", description=__doc__)
    add_model_options(parser)
    add_config_options(parser, used=", of which the data and the precision are used")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="(default: val)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write scores and confusion matrix as JSON")
    add_json_option(parser)
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
