# PYTHON_ARGCOMPLETE_OK
"""IoU class by class of a trained model on a split: `python -m fgseg.evaluate MODEL --config FILE [--split test]`."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgseg.cli import MISTAKE, Parser, format_os_error
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, parse_assignments, read_layer
from fgseg.config.settings import RunConfig
from fgseg.data import check as check_data
from fgseg.data import load_splits
from fgseg.inference.trained_model import TrainedModel, open_trained_model
from fgseg.labels import FOREGROUND
from fgseg.results import format_iou

if TYPE_CHECKING:
    import torch
    from rich.table import Table

DONE, FAULT = 0, 1


@dataclass(frozen=True)
class Scores:
    """How good a model is on a split, background left out of the mean."""

    miou: float
    """Mean over the classes that are not NaN."""
    classes: dict[str, dict[str, float]]
    """By class key: `iou`, `precision` and `recall` in [0, 1]; NaN where they are not defined."""
    confusion: list[list[int]]
    """(7, 7) pixel counts, rows truth, columns prediction, in the order of labels.CLASSES."""


def score(found: TrainedModel, run: RunConfig, split: str = "val", device: str = "cpu") -> Scores:
    """Judge a model on a split as its training judged it on the validation frames, with the same precision.

    Args:
        found: the model.
        run: data set, frame size and precision.
        split: train, val or test.
        device: as torch names it.

    Raises:
        ConfigError: what the data or the model lack.
    """
    import torch

    from fgseg.data.device_frames import load_to_device
    from fgseg.inference.trained_model import load_trained
    from fgseg.metrics.evaluator import evaluate
    from fgseg.metrics.iou import class_iou, miou

    frames = load_to_device({split: load_splits(run.data, (split,))[split]}, run.data.device, torch.device(device))[
        split
    ]
    model = load_trained(found, device)
    with autocast(run.train.precision, device):
        confusion = evaluate(model, frames).sum(0)
    iou, hits = class_iou(confusion), confusion.diagonal().double()
    precision, recall = (hits / confusion.sum(0)).tolist(), (hits / confusion.sum(1)).tolist()
    classes = {
        c.key: {"iou": iou[c.key], "precision": precision[c.label], "recall": recall[c.label]} for c in FOREGROUND
    }
    return Scores(miou(iou), classes, confusion.tolist())


def autocast(precision: str, device: str) -> "torch.autocast":
    """The context in which training with `train.precision` would judge on this device."""
    import torch

    from fgseg.training.trainer import resolve_precision

    kind = resolve_precision(precision, torch.device(device))
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


def table(scores: Scores, title: str) -> "Table":
    """The scores as people read them, the mean last; a class that is never predicted has no precision."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    shown.add_column("class")
    for column in ("IoU", "precision", "recall"):
        shown.add_column(column, justify="right")
    for c in FOREGROUND:
        found = scores.classes[c.key]
        others = ("-" if math.isnan(found[name]) else format_iou(found[name]) for name in ("precision", "recall"))
        shown.add_row(c.name, format_iou(found["iou"]), *others)
    shown.add_row("mIoU", format_iou(scores.miou), style="bold")
    return shown


def to_json(scores: Scores, split: str, run: RunConfig) -> str:
    """The scores and what they are of, NaN as null."""
    classes = {k: {m: None if math.isnan(x) else x for m, x in v.items()} for k, v in scores.classes.items()}
    mean = None if math.isnan(scores.miou) else scores.miou
    data = run.data.model_dump(exclude={"root", "cache", "device"})
    return json.dumps(asdict(scores) | {"miou": mean, "classes": classes, "split": split, "data": data}, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 --out cannot be written, 2 the user's mistake."""
    try:
        return carry_out(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        print(f"error: {format_os_error(error)}", file=sys.stderr)
        return FAULT


def carry_out(options: argparse.Namespace) -> int:
    """Do what the options say; raises ConfigError."""
    run = build([read_layer(find_file(options.config), skip="search"), Layer("--set", parse_assignments(options.set))])
    if options.split == "test" and run.data.test == 0:
        raise ConfigError("--split: there are no test frames; add --set data.test=N, or use --split val")
    check_data(run.data)
    with open_trained_model(options.model) as found:
        from fgseg.devices import find_device  # torch takes seconds to import: mistakes come first

        scores = score(found, run, options.split, find_device(options.device))
    from rich.console import Console

    size = f"{getattr(run.data, options.split)} frames of {run.data.height}x{run.data.width}"
    Console().print(table(scores, f"{options.model} on {options.split}: {size}"))
    if options.out:
        options.out.write_text(to_json(scores, options.split, run), encoding="utf-8")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m fgseg.evaluate", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a folder, exported or of checkpoints (or s3://), or a hub id")
    parser.add_argument("--config", required=True, help="settings in YAML, of which the data and the precision count")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (repeatable)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="(default: val)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write the scores and the confusion matrix as JSON"
    )
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    sys.exit(main())
