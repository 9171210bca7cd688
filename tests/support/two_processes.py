"""What several processes compute together: `python tests/support/two_processes.py FOLDER CACHE`, once for each of them.

The frames are few and small, and void is spread unevenly: the first half of each batch has most of it.
"""

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fgseg.config.loading import Layer, build
from fgseg.config.settings import DataConfig, RunConfig
from fgseg.data import load_splits
from fgseg.data.batches import train_batches
from fgseg.data.device_frames import HostFrames
from fgseg.distributed import current_world, joined_world
from fgseg.labels import VOID
from fgseg.train import main as train_command
from fgseg.training.loop import train
from fgseg.training.trainer import build_training_state, seed_epoch
from search.study.space import list_spaces, load_space

HEIGHT, WIDTH = 64, 128
TRAIN = {
    "data.height": HEIGHT, "data.width": WIDTH, "data.train": 5, "data.val": 3, "train.lr": 3e-3, "loss.lovasz": 0.5,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "hard_pixels": {"loss.hard_pixels": 0.14, "class_weights.pole": 3},
    "hardest_pixels": {"loss.hard_pixels": 0.001},
    "soft_iou_of_present": {"loss.soft_iou_over": "present"},
    "soft_iou_of_batch": {"loss.soft_iou_over": "batch"},
}
"""Settings that change the loss of the family `bas`."""
RECIPE = {
    "train.ema": 0.9, "train.warmup": 0.2, "train.weight_decay": 0.01, "train.head_lr_factor": 2, "loss.edge": 0.2,
    "loss.hard_pixels": 0.7, "loss.soft_iou_over": "batch", "model.drop_path": 0.2,
}  # fmt: skip
AUGMENTED = {
    "data.crop": "32x64", "data.rare_class_temperature": 0.1, "augment.flip_prob": 0.5, "augment.scale": 2.0,
    "augment.colour": 1.0, "copy_paste.prob": 0.8, "copy_paste.mode": "component",
}  # fmt: skip
"""Everything that draws random numbers for a batch."""


def settings(name: str, cache: str) -> RunConfig:
    """A family at its start point, or a variant of `bas`."""
    space = load_space("bas" if name in VARIANTS else name, DataConfig())
    small: dict[str, Any] = {"data.cache": cache, "train.batch_size": 4, "train.accumulation": 2}
    return build([Layer(name, {**space.fixed, **space.start, **small, **VARIANTS.get(name, {})})])


def training(epochs: int, cache: str, recipe: Mapping[str, Any] = {}) -> RunConfig:
    """A short training on five scenes, whose last batch has a single frame."""
    return build([Layer("training", {**TRAIN, "train.epochs": epochs, "data.cache": cache, **recipe})])


def augmented_batches(cache: str, rank: int) -> list[torch.Tensor]:
    """Images and labels of the batches that a process of this rank draws in an epoch."""
    run = training(1, cache, AUGMENTED)
    frames = HostFrames(load_splits(run.data, ("train",), components=True)["train"], torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed_epoch(run.train.seed, 1, rank))
    return [tensor for batch in train_batches(frames, run, generator) for tensor in batch]


def command(out: Path, cache: str, *changes: str) -> list[str]:
    """Arguments of `python -m fgseg.train` for one epoch of it."""
    sets = [
        *(f"{key}={value}" for key, value in TRAIN.items()),
        "train.epochs=1",
        f"data.cache={cache}",
        "model.name=small",
        *changes,
    ]
    return ["--config", "configs/quickstart.yaml", *(part for s in sets for part in ("--set", s)), "--out", str(out)]


def group() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of one step, of four frames and of three, which do not divide by two."""
    chance = torch.Generator().manual_seed(0)
    batches = []
    for frames in (4, 3):
        images = torch.randint(256, (frames, 3, HEIGHT, WIDTH), generator=chance, dtype=torch.uint8)
        coarse = torch.randint(7, (frames, HEIGHT // 8, WIDTH // 8), generator=chance, dtype=torch.uint8)
        labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
        labels[0] = VOID
        labels[1, : HEIGHT // 2] = VOID
        labels[-1, :, :9] = VOID
        batches.append((images, labels))
    return batches


def take_step(run: RunConfig) -> dict[str, torch.Tensor]:
    """The gradient of every weight before it is clipped, and the sums of loss and terms, of one real step."""
    state = build_training_state(run, 7)
    state.model.eval()  # batch norm by its statistics, and nothing is dropped
    found: dict[str, torch.Tensor] = {}

    def keep(accelerator: object, weights: object, norm: float) -> torch.Tensor:
        found.update({name: weight.grad.clone() for name, weight in state.step.model.named_parameters()})
        return torch.zeros(())

    with mock.patch("accelerate.Accelerator.clip_grad_norm_", keep):
        state.step(group())
    assert (getattr(state.step, "compiled", None) is not None) is (run.train.compile == "on")
    return found | {"sums": state.step.world.all_reduce(state.step.loss_sums)}


def take_steps(cache: str) -> dict[str, dict[str, torch.Tensor]]:
    """`take_step` for every family and variant, by name."""
    return {name: take_step(settings(name, cache)) for name in (*list_spaces(), *VARIANTS)}


def take_compiled_step(cache: str) -> dict[str, torch.Tensor]:
    """`take_step` of `bas` with the compiled encoder; traced only, since generating code takes half a minute."""
    run = settings("bas", cache)
    compiled = run.model_copy(update={"train": run.train.model_copy(update={"compile": "on"})})
    with mock.patch("fgseg.training.compiled_parts.BACKEND", "aot_eager"):
        return take_step(compiled)


def start(arguments: list[str], environment: dict[str, str]) -> list["subprocess.Popen[str]"]:
    """Start a command as two processes that find each other; the first comes first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"} for rank in ("0", "1")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(arguments, env=environment | meeting | rank, **pipes) for rank in ranks]


def main(folder: str, cache: str) -> None:
    """Take the steps, begin the training `begun-by-two`, continue `begun-by-one`, and run the command."""
    torch.set_num_threads(1)
    with joined_world():
        steps, world = take_steps(cache) | {"compiled": take_compiled_step(cache)}, current_world()
        torch.save(augmented_batches(cache, world.rank), Path(folder) / f"batches-{world.rank}.pt")
        if world.is_main:
            torch.save(steps, Path(folder) / "steps.pt")
        train(training(1, cache, AUGMENTED), Path(folder) / "augmented")
        train(training(1, cache), Path(folder) / "begun-by-two")
        train(training(2, cache), Path(folder) / "begun-by-one")
        train(training(1, cache, RECIPE), Path(folder) / "recipe")
        assert train_command(command(Path(folder) / "command", cache)) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
