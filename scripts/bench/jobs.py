"""Jobs of scripts.bench.train: the source's recipe and ours, each prepared once and then measured repeatedly."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.data import load_splits
from fgseg.data.batches import train_batches
from fgseg.data.device_frames import Frames, load_to_device
from fgseg.devices import tune_malloc
from fgseg.gpu_memory import limit_gpu_memory
from fgseg.losses import HybridLoss
from fgseg.metrics.evaluator import evaluate
from fgseg.model.pretrained import VARIANTS
from fgseg.training.trainer import TrainingState, build_training_state
from scripts.bench import source_recipe as source

FAMILIES = {
    "bas": ({"cross_entropy": 1.0, "ssim": 0.4, "soft_iou": 0.5}, (1,) * 7, source.Hybrid),
    "slc": ({"cross_entropy": 1.1, "ssim": 0.5, "lovasz": 0.5}, (1, 5, 1, 1, 5, 5, 2), source.Ultimate),
}
"""By family: weights of the loss terms, class weights, and the source's loss."""
EVALUATED = 250
"""Frames of the evaluation, as many as in the source's validation split."""
RECIPE: dict[str, float | str] = {
    "model.drop_path": 0.1,
    "train.head_lr_factor": 2.0,
    "train.warmup": 0.1,
    "train.weight_decay": 0.05,
    "train.ema": 0.999,
    "augment.flip_prob": 0.5,
    "augment.scale": 1.5,
    "augment.colour": 1.0,
    "data.rare_class_temperature": 0.05,
    "loss.edge": 0.2,
    "loss.hard_pixels": 0.7,
    "loss.soft_iou_over": "batch",
}
"""Every setting of the recipe that the source does not have, switched on."""
GRAPHED = 20
"""Runs of a loss in one CUDA graph, so that the launch of the graph is negligible."""


@dataclass(frozen=True)
class Setup:
    """Data, model and device of a measurement."""

    root: Path
    """Folder in the layout of Cityscapes."""
    cache: Path
    size: tuple[int, int]
    """Height and width in pixels after resizing."""
    frames: int
    """Frames in the folder."""
    batch: int
    seconds: float
    """Duration of a sample."""
    model: str
    threads: int
    """Threads of torch; 0: torch's default."""
    device: str
    share: float = 1.0
    """Fraction of the GPU's memory."""
    evaluated: int = EVALUATED
    """Frames of an evaluation."""


class Endless:
    """Repeats a few frames up to `length`, so that epochs are as long as with the full data set."""

    def __init__(self, frames: Frames, length: int):
        self.frames, self.length = frames, length
        self.device, self.index_device, self.size = frames.device, frames.index_device, frames.size
        self.pixels, self.components = frames.pixels, None

    def __len__(self) -> int:
        return self.length

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels, see `fgseg.data.device_frames.Frames`; indices wrap around."""
        return self.frames.batch(index % len(self.frames))

    def component_ids(self, index: Tensor) -> Tensor:
        """Return component ids, see `fgseg.data.device_frames.Frames`; indices wrap around."""
        return self.frames.component_ids(index % len(self.frames))


def settings(setup: Setup, recipe: Mapping[str, float | str] = MappingProxyType({})) -> RunConfig:
    """Return the source's settings of bas_cp for the frames of a setup, with those of a recipe by dotted name."""
    height, width = setup.size
    weights = {f"loss.{term}": weight for term, weight in FAMILIES["bas"][0].items()}
    data = {
        "reader": "cityscapes",
        "root": str(setup.root),
        "cache": str(setup.cache),
        "height": height,
        "width": width,
    }
    counts = {"data.train": setup.frames, "data.val": 1, "data.test": 0}
    values = {f"data.{key}": value for key, value in data.items()} | counts | weights
    return build(
        [
            Layer(
                "benchmark",
                values | {"copy_paste.prob": 0.5, "train.batch_size": setup.batch, "model.name": setup.model} | recipe,
            )
        ]
    )


def our_training(setup: Setup, recipe: Mapping[str, float | str] = MappingProxyType({})) -> Callable[[], float]:
    """Prepare our training, with the settings of a recipe; a sample is in images per second."""
    training = prepare_training(setup, recipe)
    return lambda: setup.batch / step_s(setup, *training)


def prepare_training(
    setup: Setup, changes: Mapping[str, float | str] = MappingProxyType({})
) -> tuple[TrainingState, Iterator[tuple[Tensor, Tensor]]]:
    """Return the state of our training, with changed settings, after the first steps, and its further batches."""
    if setup.device == "cuda":
        limit_gpu_memory(setup.share)
    run = settings(setup, changes)
    state = build_training_state(run, 10**5)
    train = load_splits(run.data, ("train",))["train"]
    frames = Endless(load_to_device({"train": train}, run.data.device, state.accelerator.device)["train"], 10**5)
    state.model.train()
    generator = torch.Generator(frames.device).manual_seed(0)
    batches = train_batches(frames, run, generator)
    steps_s(state, batches, source.WARM_UP)
    return state, batches


def step_s(setup: Setup, state: TrainingState, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return the mean seconds of a training step, over about `setup.seconds`."""
    pace = steps_s(state, batches, 2)
    return steps_s(state, batches, max(2, math.ceil(setup.seconds / pace)))


def steps_s(state: TrainingState, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> float:
    """Return the mean seconds of `count` training steps."""
    started = source.synchronized_time()
    for batch in islice(batches, count):
        state.step([batch])
    return (source.synchronized_time() - started) / count


def their_training(setup: Setup) -> Callable[[], float]:
    """Prepare the source's training, with at most eight loader workers; a sample is in images per second."""
    model, data = their_model(setup), source.Streets(setup.root, *setup.size)
    workers = min(8, os.cpu_count() or 1)
    return lambda: source.train(model, data, setup.batch, workers, setup.seconds)


def their_model(setup: Setup) -> torch.nn.Module:
    """Build the source's model."""
    variant = VARIANTS[setup.model]
    return source.build_model(variant.widths, variant.depths, variant.heads, variant.decoder)


def their_step(setup: Setup) -> Callable[[], float]:
    """Prepare the source's step on a batch in memory, on the CPU; a sample is in seconds."""
    images, labels = batch_of(setup)
    step = source.step_of(their_model(setup), source.Hybrid(), images, labels.long())
    return timed(step)


def our_step(setup: Setup) -> Callable[[], float]:
    """Prepare our step on a batch in memory, including normalisation; a sample is in seconds."""
    _, labels = batch_of(setup)
    images = torch.randint(0, 256, (setup.batch, 3, *setup.size), dtype=torch.uint8)
    state = build_training_state(settings(setup), 10**5)
    state.model.train()
    return timed(lambda: state.step([(images, labels)]))


def our_evaluation(setup: Setup) -> Callable[[], float]:
    """Prepare the evaluation of frames: predictions, upsampling, counts; a sample is in seconds."""
    run = settings(setup)
    state = build_training_state(run, 10**5)
    device = state.accelerator.device
    train = load_splits(run.data, ("train",))["train"]
    frames = Endless(load_to_device({"train": train}, run.data.device, device)["train"], setup.evaluated)

    def run_evaluation() -> None:
        with state.accelerator.autocast():
            evaluate(state.model, frames)

    return timed(run_evaluation)


def their_loss(setup: Setup, family: str) -> Callable[[], float]:
    """Prepare the source's loss, forward and backward; a sample is in seconds per image."""
    logits, labels = logits_of(setup)
    criterion = FAMILIES[family][2]().to(setup.device)
    labels = labels.long()
    run = timed(lambda: torch.autograd.grad(criterion(logits, labels), logits))
    return lambda: run() / setup.batch


def our_loss(setup: Setup, family: str) -> Callable[[], float]:
    """Prepare our loss; on a GPU compiled and in a CUDA graph, as in training.  A sample is in seconds per image."""
    tune_malloc()
    logits, labels = logits_of(setup)
    weights, class_weights, _ = FAMILIES[family]
    criterion: Any = HybridLoss(weights, class_weights).to(setup.device)
    if setup.device == "cpu":
        run = timed(lambda: torch.autograd.grad(criterion(logits, labels)[0], logits))
        return lambda: run() / setup.batch
    compiled = torch.compile(criterion, dynamic=False)
    run = timed(graphed(lambda: torch.autograd.grad(compiled(logits, labels)[0], logits)))
    return lambda: run() / setup.batch / GRAPHED


def graphed(run: Callable[[], object]) -> Callable[[], None]:
    """Capture `GRAPHED` runs in one CUDA graph; returns its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(GRAPHED):
            run()
    return graph.replay


def bandwidth(setup: Setup) -> Callable[[], float]:
    """Prepare a copy on the device; a sample is in bytes per second, read and written."""
    size = 2**28 if setup.device == "cuda" else 2**22
    into, out = (torch.empty(size, dtype=torch.float32, device=setup.device) for _ in range(2))
    run = timed(lambda: into.copy_(out))
    return lambda: 2 * into.nbytes / run()


def matrix_product(setup: Setup, dtype: torch.dtype) -> Callable[[], float]:
    """Prepare a product of two square matrices on the device; a sample is in operations per second."""
    size = 4096 if setup.device == "cuda" else 256
    one, other = torch.ones(2, size, size, dtype=dtype, device=setup.device)
    run = timed(lambda: one @ other)
    return lambda: 2 * size**3 / run()


def logits_of(setup: Setup) -> tuple[Tensor, Tensor]:
    """Return random logits (B, 7, H/4, W/4) float32 and labels (B, H, W) uint8 on the device."""
    height, width = setup.size
    torch.manual_seed(0)
    logits = torch.randn(setup.batch, 7, height // 4, width // 4, device=setup.device).requires_grad_()
    return logits, batch_of(setup)[1].to(setup.device)


def batch_of(setup: Setup) -> tuple[Tensor, Tensor]:
    """Return random images (B, 3, H, W) float32 and labels (B, H, W) uint8 in blocks of 16 pixels, on the CPU."""
    height, width = setup.size
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 7, (setup.batch, -(-height // 16), -(-width // 16)), generator=generator)
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].to(torch.uint8)
    return torch.randn(setup.batch, 3, height, width, generator=generator), labels


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Return a sample: the seconds of one run, including its work on the device."""
    for _ in range(3):
        run()

    def sample() -> float:
        started = source.synchronized_time()
        run()
        return source.synchronized_time() - started

    return sample


JOBS: dict[str, dict[str, Callable[[Setup], Callable[[], float]]]] = {
    "training": {"source": their_training, "ours": our_training},
    "recipe": {"without": our_training, "with": lambda setup: our_training(setup, RECIPE)},
    "step": {"source": their_step, "ours": our_step},
    "bas loss": {"source": lambda s: their_loss(s, "bas"), "ours": lambda s: our_loss(s, "bas")},
    "slc loss": {"source": lambda s: their_loss(s, "slc"), "ours": lambda s: our_loss(s, "slc")},
    "evaluation": {"ours": our_evaluation},
    "bandwidth": {"ours": bandwidth},
}
"""Preparing function of each side by job; the function that it returns takes one sample."""
