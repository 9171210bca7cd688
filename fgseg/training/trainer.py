"""The state of a training, and one epoch of it."""

import logging
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.checkpoints.checkpoint import Checkpoint
from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig
from fgseg.data import FrameSet
from fgseg.data.batches import train_batches
from fgseg.data.cache import cache_folder
from fgseg.data.device_frames import Frames, load_to_device
from fgseg.devices import peak_gib, peak_memory_gib, reset_peak, tune_malloc
from fgseg.distributed import World, reset_accelerate
from fgseg.losses import HybridLoss
from fgseg.metrics.boundary_iou import boundary_counts, class_boundary_iou
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.metrics.iou import class_iou, confusion_counts, miou
from fgseg.model.edge_head import SegformerWithEdges
from fgseg.model.head_transfer import HeadRows, set_rows
from fgseg.model.segformer import build_model
from fgseg.node_load import gpus_of, measured_load
from fgseg.results import DivergedError, EpochResult
from fgseg.training.compiled_step import CompiledStep, wants_compiling
from fgseg.training.optimizer import build_optimizer, build_schedule, count_steps, lr_to_device
from fgseg.training.step import Step
from fgseg.training.weight_average import WeightAverage

log = logging.getLogger(__name__)

MAX_OVERFLOWS = 0.1
"""Largest share of an epoch's images whose loss, and of its steps whose gradient, may be NaN or infinite with fp16;
beyond it the training has diverged.

The scaler skips the steps of such batches, and the statistics of batch norm are restored, so that they do no harm.  The
share was chosen and not measured: overflows come one at a time, while a model that has diverged overflows in nearly
every batch.  Without a scaler a single one destroys the weights."""


@dataclass
class TrainingState:
    """Everything that changes during training; model, optimizer and schedule are the unwrapped ones.

    Attributes:
        model: the SegFormer that is trained, without edge head.
        evaluated: the SegFormer that is evaluated and exported: with the averaged weights if there is an average.
    """

    run: RunConfig
    accelerator: Accelerator
    model: torch.nn.Module
    evaluated: torch.nn.Module
    optimizer: AdamW
    schedule: LambdaLR
    step: Step

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights that are evaluated, and the state of optimizer, schedule and scaler.

        The state also has the weights that are trained, if an average of them is evaluated, and those of the edge head.
        The random state is not included: it is a function of seed and epoch (see `seed_epoch`).  Nothing depends on the
        number of processes.
        """
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.step.scaler.state_dict(),
        }
        parts = {"weights": self.model if self.step.average else None, "edge_head": self.edge_head}
        state |= {name: part.state_dict() for name, part in parts.items() if part is not None}
        return self.evaluated.state_dict(), state

    @property
    def edge_head(self) -> torch.nn.Module | None:
        """The auxiliary edge head; None without one."""
        return self.step.model.edge_head if isinstance(self.step.model, SegformerWithEdges) else None


def build_training_state(run: RunConfig, frames: int, rows: HeadRows | None = None) -> TrainingState:
    """Build model, loss, optimizer and schedule as they are before the first epoch.

    Where a torch.distributed group is initialised, all its processes call this.

    Args:
        run: all settings.
        frames: number of training frames; decides the number of steps of the schedule.
        rows: initial weights of the classifier; None keeps those of `build_model`.

    Raises:
        ConfigError: see `build_accelerator`; or the weights cannot be loaded.
    """
    tune_malloc()
    seed_epoch(run.train.seed, 0)
    accelerator = build_accelerator(run)
    device, world = accelerator.device, World(accelerator.process_index, accelerator.num_processes)
    model = build_model(run.model.name, run.label_set(), run.model.drop_path)
    if rows is not None:
        set_rows(model, rows)
    model = model.to(device)
    if device.type == "cuda" and world.is_distributed:  # Accelerate leaves batch norm as it is
        model = SyncBatchNorm.convert_sync_batchnorm(model)
    network = SegformerWithEdges(model).to(device) if run.loss.edge else model
    average = WeightAverage(model, run.train.ema) if run.train.ema else None
    optimizer = build_optimizer(network, run.train)
    schedule = build_schedule(optimizer, run.train, frames)
    lr_to_device(optimizer, device)
    criterion = build_loss(run, world).to(device)
    parts = (accelerator, network, criterion, optimizer, schedule, run.train.clip, average)
    step = build_step(run, parts, frames)
    evaluated = accelerator.prepare_model(average.model if average else model, evaluation_mode=True)
    return TrainingState(run, accelerator, model, evaluated, optimizer, schedule, step)


def build_loss(run: RunConfig, world: World) -> HybridLoss:
    """Build the loss of a run for the processes that share each batch."""
    return HybridLoss(
        run.loss.weights,
        list(run.class_weights.values()),
        world,
        hard_pixels=run.loss.hard_pixels,
        soft_iou_over=run.loss.soft_iou_over,
        thin=[c.thin for c in run.label_set().classes],
    )


def build_step(run: RunConfig, parts: tuple[Any, ...], frames: int) -> Step:
    """Build the step from its arguments, compiled where `train.compile` selects that; `frames` as for the schedule."""
    accelerator: Accelerator = parts[0]
    if not wants_compiling(run.train.compile, accelerator.device):
        return Step(*parts)
    steps = count_steps(run.train, frames) if run.train.compile == "auto" else None
    return CompiledStep(*parts, cache=cache_folder(run.data) / "compiled", steps=steps)


def build_accelerator(run: RunConfig) -> Accelerator:
    """Build an Accelerator for one training, or for the evaluation of its model.

    Raises:
        ConfigError: the device does not support the precision, or see `reset_accelerate`.
    """
    device = reset_accelerate().device
    if device.type == "cuda":
        # A model that was prepared for mixed precision refers to itself: its memory waits for the garbage collector.
        release_memory()
    precision = resolve_precision(run.train.precision, device)
    if precision == "fp16" and device.type == "cpu":  # on a machine with a GPU, by `accelerate launch --cpu`
        raise ConfigError("train.precision: got fp16, but training runs on the CPU; use auto, bf16 or no")
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=run.train.accumulation)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision that `train.precision` selects on a device: "no", "fp16" or "bf16".

    Raises:
        ConfigError: fp16 on a machine without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: got fp16, this machine has no GPU; use auto, bf16 or no")
    return ("fp16" if device.type == "cuda" else "no") if precision == "auto" else precision


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> int:
    """Set torch's random state to a function of seed, epoch and rank, so that a resumed epoch is the same.

    Returns:
        A seed for generators of the same epoch, the same on every rank.
    """
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(mixed + rank)
    return mixed


def load_checkpoint(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Load weights, optimizer, schedule and scaler into a state that was just built."""
    state.evaluated.load_state_dict(checkpoint.model)
    state.model.load_state_dict(checkpoint.state.get("weights", checkpoint.model))
    if state.edge_head is not None:
        state.edge_head.load_state_dict(checkpoint.state["edge_head"])
    state.optimizer.load_state_dict(checkpoint.state["optimizer"])
    state.schedule.load_state_dict(checkpoint.state["schedule"])
    if checkpoint.state["scaler"]:
        state.step.scaler.load_state_dict(checkpoint.state["scaler"])
    lr_to_device(state.optimizer, state.accelerator.device)


def run_epoch(state: TrainingState, splits: dict[str, FrameSet], epoch: int, attempt: int) -> EpochResult:
    """Train on all training frames once, then evaluate on the validation frames."""
    accelerator, device = state.accelerator, state.accelerator.device
    frames = load_to_device(splits, state.run.data.device, device)
    reset_peak(device)
    prepared = state.step.compile_s
    started = time.perf_counter()
    with measured_load(gpus_of(device, accelerator.num_processes), active=accelerator.is_main_process) as load:
        loss, terms = train_one_epoch(state, frames["train"], epoch)
        trained = time.perf_counter()
        compile_s = state.step.compile_s if prepared is None else None
        per_frame, *rims = validate(state, frames["val"])
    counts = per_frame.sum(0)
    classes = state.run.label_set()
    iou = class_iou(counts, classes)
    return EpochResult(
        epoch=epoch,
        miou=miou(iou),
        iou=iou,
        confusion=counts.tolist(),
        loss=loss,
        terms=terms,
        images_per_s=len(splits["train"]) / (trained - started - (compile_s or 0)),
        seconds=time.perf_counter() - started,
        wall_time=time.time(),
        attempt=attempt,
        compile_s=compile_s,
        memory_gib=peak_memory_gib(),
        gpu_memory_gib=peak_gib(device),
        thin=[c.key for c in classes.thin],
        frame_miou=[miou(class_iou(each, classes)) for each in per_frame] if state.run.train.frame_scores else [],
        boundary_iou=class_boundary_iou(rims[0].sum(0), iou, classes) if rims else {},
        load=load,
    )


def validate(state: TrainingState, frames: Frames) -> list[Tensor]:
    """Evaluate the frames of a split, which the processes share.

    The model is not the distributed one: its forward has the precision that Accelerate gave it as well, and the frames
    of the processes may differ in number, which the distributed one does not allow.

    Returns:
        The confusion matrix (N, C, C) int64 of each frame, rows truth; with `train.boundary_scores` also the counts
        (N, C, 2) of `boundary_counts`.
    """
    world = state.step.world
    world.average_buffers(state.model)
    if state.step.average:
        state.step.average.copy_buffers()
    run, classes = state.run, state.run.label_set().num_classes
    columns = {confusion_counts: classes} | ({boundary_counts: 2} if run.train.boundary_scores else {})
    counts = [torch.zeros(len(frames), classes, n, dtype=torch.int64, device=frames.device) for n in columns.values()]
    if world.rank < len(frames):
        own = confusion_per_image(state.evaluated, frames, *columns, world=world, window=run.data.window)
        for all_frames, part in zip(counts, own, strict=True):
            all_frames[world.rank :: world.world_size] = part.to(frames.device)
    return [world.all_reduce(each).cpu() for each in counts]


def train_one_epoch(state: TrainingState, frames: Frames, epoch: int) -> tuple[float, dict[str, float]]:
    """Train on every frame once; return the mean per image of the loss and of its unweighted terms.

    Batches whose loss is not finite are left out of the means.

    Raises:
        DivergedError: there are too many such batches or steps, see `check_finite` and `check_gradients`.
    """
    run, step = state.run, state.step
    generator = torch.Generator(frames.device).manual_seed(seed_epoch(run.train.seed, epoch, step.world.rank))
    state.model.train()
    step.loss_sums.zero_()
    step.nonfinite.zero_()
    step.overflows.zero_()
    batches, steps = train_batches(frames, run, generator), 0
    while group := list(islice(batches, run.train.accumulation)):
        step(group)
        steps += 1
    sums, nonfinite = step.world.all_reduce(torch.stack([step.loss_sums, step.nonfinite])).tolist()
    names, count = ("loss", *step.criterion.terms), len(frames)
    shares = {name: images / count for name, images in zip(names, nonfinite, strict=True)}
    check_finite(epoch, shares, MAX_OVERFLOWS if step.scaler.is_enabled() else 0.0)
    check_gradients(epoch, int(step.overflows), steps, step.scaler.get_scale() if step.scaler.is_enabled() else None)
    means = {name: value / (count - nonfinite[0]) for name, value in zip(names, sums, strict=True)}
    return means.pop("loss"), means


def check_finite(epoch: int, shares: dict[str, float], limit: float) -> None:
    """Raise DivergedError if the loss was NaN or infinite too often, else log a warning if it was at all.

    Args:
        epoch: number of the epoch, for messages.
        shares: the share of the epoch's images, in [0, 1], in whose batches the loss and each of its terms were not
            finite, by name.  The message names the first such term.
        limit: largest share for the loss that is not a divergence.
    """
    if shares["loss"] == 0:
        return
    name = next((name for name, share in shares.items() if share > 0 and name != "loss"), "loss")
    found = f"epoch {epoch}: {name} is NaN or infinite for {shares[name]:.1%} of the images"
    if shares["loss"] > limit:
        raise DivergedError(f"{found}; lower train.lr or the weights of the loss")
    log.warning("%s, whose steps fp16 skipped; more than %.0f %% would end the trial", found, 100 * limit)


def check_gradients(epoch: int, overflows: int, steps: int, scale: float | None) -> None:
    """Raise DivergedError if the gradients of an epoch were NaN or infinite too often, which the loss need not show.

    A scaler starts at a scale of 2**16, which may be too large, and halves it with every step that it skips.  Only a
    scale below 1 means that the gradients overflow by themselves: before, a warning is logged.

    Args:
        epoch: number of the epoch, for messages.
        overflows: steps of the epoch with such a gradient.
        steps: of the epoch.
        scale: of the loss after the epoch; None without a scaler, where one such step destroys the weights.
    """
    if overflows <= (0 if scale is None else MAX_OVERFLOWS * steps):
        return
    found = f"epoch {epoch}: the gradient is NaN or infinite in {overflows} of {steps} steps"
    if scale is None or scale < 1:
        raise DivergedError(f"{found}; lower train.lr or the weights of the loss")
    log.warning("%s, which fp16 skipped until its scale of the loss was %g", found, scale)
