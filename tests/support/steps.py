"""Groups of batches for a step, and what a training leaves after them."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from random_frames import resident, some_frames
from torch import Tensor
from torch.amp import GradScaler

from fgseg.training.trainer import TrainingState

RECIPE = {"loss__edge": 0.2, "loss__hard_pixels": 0.2, "loss__soft_iou_over": "batch", "train__ema": 0.9}
RECIPE |= {"train__head_lr_factor": 0.5, "train__warmup": 0.2, "train__weight_decay": 0.01}
CPU = torch.device("cpu")


def groups(count: int, size: int = 2, device: torch.device = CPU) -> list[list[tuple[Tensor, Tensor]]]:
    """The groups of `count` steps, one batch each."""
    frames = resident(some_frames(count * size))
    batches = (frames.batch(index) for index in torch.arange(count * size).split(size))
    return [[(images.to(device), labels.to(device))] for images, labels in batches]


def run_steps(state: TrainingState, batches: list) -> tuple[Tensor, Tensor]:
    """The sums of the loss and its terms, and all weights that are evaluated in a row."""
    for group in batches:
        state.step(group)
    return state.step.loss_sums.cpu(), torch.cat([p.detach().flatten() for p in state.evaluated.parameters()]).cpu()


def with_scaler(state: TrainingState) -> TrainingState:
    """Let a scaler decide on the CPU, as it does with fp16 on a GPU, which steps fused AdamW takes."""
    state.step.scaler = state.accelerator.scaler = GradScaler("cpu", init_scale=1024.0)
    state.step.statistics = list(filter(torch.is_floating_point, state.model.buffers()))
    state.step.prepared_optimizer = AcceleratedOptimizer(
        state.optimizer, device_placement=False, scaler=state.step.scaler
    )
    return state
