"""Compare the mIoU of the fast path with the source's: python -m scripts.bench.equality [--seeds 3] [--epochs 5]

Trains bas_cp on the same procedural scenes with the source's recipe (PNG files, PIL copy-paste, stock decode head,
plain losses, HF Trainer) and with ours, once for each seed, and compares the last mIoU.  One training
runs per core.
"""

import argparse
import math
import os
import random
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.data import FrameSet, load_splits
from fgseg.data.streets.classes import ROAD
from fgseg.labels import LabelSet
from fgseg.model.pretrained import VARIANTS
from fgseg.training.loop import train
from scripts.bench import source_recipe as source
from scripts.bench.jobs import FAMILIES
from scripts.bench.machine import machine_with_gpu

BATCH = 2
FOLDERS = (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))


@dataclass(frozen=True)
class Task:
    """Settings of one training."""

    side: str
    """Whose recipe trains: that of "source", else ours; names the folder of its checkpoints."""
    seed: int
    folder: str
    frames: int
    epochs: int
    lr: float
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of our training, by dotted name."""


def settings(task: Task) -> RunConfig:
    """Return settings of the quickstart's scenes and model, with the source's loss weights of bas_cp."""
    values: dict[str, Any] = {f"loss.{term}": weight for term, weight in FAMILIES["bas"][0].items()}
    values |= {"train.epochs": task.epochs, "train.lr": task.lr, "train.batch_size": BATCH, "train.seed": task.seed}
    values |= {"copy_paste.prob": 0.5, "data.train": task.frames, "data.cache": f"{task.folder}/cache"}
    return build([Layer("equality", values | task.changes)])


def run_task(task: Task) -> float:
    """Train on one thread; returns the validation mIoU of the last epoch."""
    torch.set_num_threads(1)
    return theirs(task) if task.side == "source" else ours(task)


def ours(task: Task) -> float:
    """Train as a trial does; returns the mIoU of the last epoch."""
    return train(settings(task), f"{task.folder}/{task.side}-{task.seed}")[-1].miou


def theirs(task: Task) -> float:
    """Train with the source's recipe on PNG files of the same frames; returns the final mIoU."""
    run = settings(task)
    random.seed(task.seed)
    torch.manual_seed(task.seed)
    variant = VARIANTS[run.model.name]
    model = source.build_model(variant.widths, variant.depths, variant.heads, variant.decoder)
    data = source.Streets(Path(task.folder) / "files", run.data.height, run.data.width)
    data.length = task.frames
    with tempfile.TemporaryDirectory() as folder:
        changes = {"num_train_epochs": task.epochs, "learning_rate": task.lr, "seed": task.seed, "log_level": "error"}
        arguments = source.protocol(folder, BATCH, 0, **changes, logging_strategy="no")
        trainer = source.HybridTrainer(model=model, args=arguments, train_dataset=data, criterion=source.Hybrid())
        trainer.remove_callback(source.PrinterCallback)
        trainer.train()
    return mean_iou(model, load_splits(run.data, ("val",))["val"])


@torch.no_grad()
def mean_iou(model: nn.Module, frames: FrameSet) -> float:
    """Return the mean IoU of the foreground classes in [0, 1], with a batch size of 1."""
    model.eval()
    device = next(model.parameters()).device
    counts = np.zeros((source.CLASSES, source.CLASSES), np.int64)
    for image, labels in zip(frames.images, frames.labels, strict=True):
        pixels = (np.asarray(image, np.float32) / 255 - source.MEAN) / source.STD
        logits = model(pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].to(device)).logits
        logits = F.interpolate(logits, size=labels.shape, mode="bilinear", align_corners=False)
        valid = np.asarray(labels) != source.IGNORED
        np.add.at(counts, (labels[valid], logits[0].argmax(0).cpu().numpy()[valid]), 1)
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    return float(np.mean([hits[c] / union[c] for c in range(1, source.CLASSES) if union[c]]))


def write_files(frames: FrameSet, classes: LabelSet, root: Path) -> None:
    """Write frames as PNG files in the layout of Cityscapes; the background as road."""
    ids = np.array([c.ids[0] if c.ids else ROAD for c in classes.classes], np.uint8)
    for index, (image, labels) in enumerate(zip(frames.images, frames.labels, strict=True)):
        for (folder, ending), array in zip(FOLDERS, (np.asarray(image), ids[labels]), strict=True):
            path = root / folder / "train" / "streets" / f"streets_{index:06d}_000000_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def table(scores: dict[str, list[float]]) -> list[str]:
    """Format the mIoU of both sides by seed, mean, standard deviation, and the difference with its standard error."""
    lines = ["| seed | source | ours | difference |", "|---|---|---|---|"]
    pairs = list(zip(scores["source"], scores["ours"], strict=True))
    lines += [f"| {seed} | {a:.4f} | {b:.4f} | {b - a:+.4f} |" for seed, (a, b) in enumerate(pairs)]
    means = {side: statistics.mean(values) for side, values in scores.items()}
    spreads = {side: statistics.stdev(values) for side, values in scores.items()}
    mean_difference, error = difference(scores)
    lines.append(f"| mean | {means['source']:.4f} | {means['ours']:.4f} | {mean_difference:+.4f} |")
    lines.append(f"| standard deviation | {spreads['source']:.4f} | {spreads['ours']:.4f} | |")
    verdict = "within" if abs(mean_difference) <= 2 * error else "beyond"
    lines.append(f"The difference of the means is {verdict} twice its standard error of {error:.4f}.")
    return lines


def difference(scores: dict[str, list[float]]) -> tuple[float, float]:
    """Return how much larger the mean of the second side is than that of the first, and its standard error."""
    first, second = scores.values()
    error = math.hypot(statistics.stdev(first), statistics.stdev(second)) / math.sqrt(len(first))
    return statistics.mean(second) - statistics.mean(first), error


def paired_difference(scores: dict[str, list[float]]) -> tuple[float, float]:
    """Return the mean difference of the second side to the first for equal seeds, and its standard error."""
    differences = [b - a for a, b in zip(*scores.values(), strict=True)]
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def main(arguments: list[str] | None = None) -> None:
    """Run all trainings, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings per side, at least 2")
    parser.add_argument("--frames", type=int, default=208, metavar="N", help="scenes of 128x256 to train on")
    parser.add_argument("--epochs", type=int, default=5, metavar="N")
    parser.add_argument("--lr", type=float, default=5e-3, metavar="X")
    options = parser.parse_args(arguments)
    print(machine_with_gpu(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(side, seed, folder, options.frames, options.epochs, options.lr)
            for side in ("source", "ours")
            for seed in range(options.seeds)
        ]
        data = settings(tasks[0]).data
        write_files(load_splits(data, ("train", "val"))["train"], data.label_set(), Path(folder) / "files")
        with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
            values = pool.map(run_task, tasks, chunksize=1)
        scores = {
            side: [v for task, v in zip(tasks, values, strict=True) if task.side == side] for side in ("source", "ours")
        }
    print(f"synthetic scenes: {options.frames} of 128x256, {options.epochs} epochs, learning rate {options.lr:g}")
    print("\n".join(table(scores)))


if __name__ == "__main__":
    main()
