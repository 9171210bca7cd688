"""Train and validate for one epoch."""

import logging
import time
from itertools import islice

import torch
from torch import Tensor

from fgseg.data import FrameSet
from fgseg.data.batches import train_batches
from fgseg.data.device_frames import Frames, load_to_device
from fgseg.devices import peak_gib, peak_memory_gib, reset_peak
from fgseg.metrics.boundary_iou import boundary_counts, class_boundary_iou
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.metrics.iou import class_iou, confusion_counts, miou
from fgseg.node_load import gpus_of, measured_load
from fgseg.results import DivergedError, EpochResult
from fgseg.training.trainer import TrainingState, seed_epoch

log = logging.getLogger(__name__)

MAX_OVERFLOWS = 0.1
"""Largest share of an epoch's images whose loss, and of its steps whose gradient, may be NaN or infinite with fp16;
beyond it the training has diverged.

The scaler skips the steps of such batches, and the statistics of batch norm are restored, so that they do no harm.  The
share was chosen and not measured: overflows come one at a time, while a model that has diverged overflows in nearly
every batch.  Without a scaler a single one destroys the weights."""


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
