"""Build the state of a training: model, loss, optimizer, schedule and step."""

import logging
from dataclasses import dataclass
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
from fgseg.data.cache import cache_folder
from fgseg.devices import check_precision, tune_malloc
from fgseg.distributed import World, reset_accelerate
from fgseg.losses import HybridLoss
from fgseg.model.edge_head import SegformerWithEdges
from fgseg.model.head_transfer import HeadRows, set_rows
from fgseg.model.segformer import build_model
from fgseg.training.compiled_step import CompiledStep, wants_compiling
from fgseg.training.optimizer import build_optimizer, build_schedule, count_steps, lr_to_device
from fgseg.training.step import Step
from fgseg.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


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
    check_precision(precision)
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
