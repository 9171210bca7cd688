"""The learner: model, loss, optimizer and schedule, and how one epoch changes them."""

import math
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.batches import normalise, train_batches
from fgseg.checkpoint import newest_checkpoint
from fgseg.config import ConfigError, RunConfig
from fgseg.data import FrameSet
from fgseg.epoch import EpochResult
from fgseg.evaluate import evaluate
from fgseg.losses import HybridLoss
from fgseg.metrics import class_iou, miou
from fgseg.model import build_model
from fgseg.store import LocalStore


class DivergedError(Exception):
    """A loss or metric stopped being finite."""


@dataclass
class Learner:
    """Everything that changes while a model trains."""

    run: RunConfig
    accelerator: Accelerator
    model: torch.nn.Module
    criterion: HybridLoss
    optimizer: Any
    schedule: LambdaLR

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights, and the state of optimizer, schedule and scaler.

        The random state is not among them: it is a function of seed and epoch (see `seed_epoch`).
        """
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        return self.accelerator.unwrap_model(self.model).state_dict(), state


def build_learner(run: RunConfig, frames: int) -> Learner:
    """Model, loss, optimizer and schedule as they are before the first epoch.

    Args:
        run: all settings.
        frames: number of training frames; decides how many steps the schedule has.
    """
    seed_epoch(run.train.seed, 0)
    AcceleratorState._reset_state(True)  # the state of an earlier trial in this process would win otherwise
    accelerator = Accelerator(mixed_precision=resolve_precision(run.train.precision))
    model = build_model(run.model.name)
    optimizer = AdamW(model.parameters(), lr=run.train.lr, weight_decay=0.0)
    batches = math.ceil(frames / run.train.batch_size)
    steps = math.ceil(batches / run.train.accumulation) * run.train.epochs
    schedule = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    model, optimizer = accelerator.prepare(model, optimizer)
    criterion = HybridLoss(run.loss.model_dump(), list(run.class_weights.model_dump().values()))
    return Learner(run, accelerator, model, criterion.to(accelerator.device), optimizer, schedule)


def resolve_precision(precision: str) -> str:
    """What `train.precision` means on this machine: "no", "fp16" or "bf16"."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: got fp16, this machine has no GPU; use auto, bf16 or no")
    return ("fp16" if torch.cuda.is_available() else "no") if precision == "auto" else precision


def seed_epoch(seed: int, epoch: int) -> int:
    """Set torch's random state to a function of (seed, epoch), so that an epoch is the same after a continuation.

    Returns:
        A seed for generators of the same epoch.
    """
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(mixed)
    return mixed


def restore(learner: Learner, store: LocalStore) -> list[EpochResult]:
    """Load the newest valid checkpoint; returns the epochs that it holds, none where there is no checkpoint."""
    checkpoint = newest_checkpoint(store)
    if checkpoint is None:
        return []
    learner.accelerator.unwrap_model(learner.model).load_state_dict(checkpoint.model)
    learner.optimizer.load_state_dict(checkpoint.state["optimizer"])
    learner.schedule.load_state_dict(checkpoint.state["schedule"])
    if learner.accelerator.scaler is not None and checkpoint.state["scaler"]:
        learner.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    return list(checkpoint.manifest.history)


def train_epoch(learner: Learner, splits: dict[str, FrameSet], epoch: int, attempt: int) -> EpochResult:
    """One pass over the training frames, then one over the validation frames."""
    started = time.perf_counter()
    loss, terms = fit(learner, splits["train"], epoch)
    trained = time.perf_counter()
    check_finite(epoch, {**terms, "loss": loss})
    with learner.accelerator.autocast():
        counts = evaluate(learner.model, splits["val"], learner.accelerator.device).sum(0)
    iou = class_iou(counts)
    return EpochResult(
        epoch=epoch,
        miou=miou(iou),
        iou=iou,
        confusion=counts.tolist(),
        loss=loss,
        terms=terms,
        images_per_s=len(splits["train"]) / (trained - started),
        seconds=time.perf_counter() - started,
        wall_time=time.time(),
        attempt=attempt,
    )


def fit(learner: Learner, frames: FrameSet, epoch: int) -> tuple[float, dict[str, float]]:
    """Train on every frame once; returns the mean per image of the loss and of its unweighted terms."""
    accelerator, run = learner.accelerator, learner.run
    generator = torch.Generator(accelerator.device).manual_seed(seed_epoch(run.train.seed, epoch))
    learner.model.train()
    sums: dict[str, Tensor] = {}
    batches = train_batches(frames, run, generator)
    while group := list(islice(batches, run.train.accumulation)):
        for images, labels in group:
            with accelerator.autocast():
                logits = learner.model(pixel_values=normalise(images)).logits
            loss, terms = learner.criterion(logits, labels)
            accelerator.backward(loss / len(group))
            for name, value in {**terms, "loss": loss.detach()}.items():
                sums[name] = sums.get(name, 0) + value * len(labels)
        step(learner)
    means = {name: float(value) / len(frames) for name, value in sums.items()}
    return means.pop("loss"), means


def step(learner: Learner) -> None:
    """Clip the gradient, step the optimizer, and the schedule unless the loss scaler skipped the step."""
    learner.accelerator.clip_grad_norm_(learner.model.parameters(), learner.run.train.clip)
    learner.optimizer.step()
    if not learner.optimizer.step_was_skipped:
        learner.schedule.step()
    learner.optimizer.zero_grad()


def check_finite(epoch: int, values: dict[str, float]) -> None:
    """Raise DivergedError naming the epoch and the first value that is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"epoch {epoch}: {name} is {value}; lower train.lr or the weights of the loss")
