"""One optimizer step."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.distributed import local_batch
from fgseg.losses import HybridLoss
from fgseg.training.network import Network
from fgseg.training.weight_average import WeightAverage

MicroBatches = Sequence[tuple[Tensor, Tensor]]
"""The batches of one optimizer step: images (B, 3, H, W) uint8 and labels (B, H, W) uint8 each.

Every process passes the same whole batches and computes its own frames of them.
"""


class Step:
    """Forward, backward, clipping, AdamW and schedule, by Accelerate.

    Nothing in it waits for the device, except synchronised batch norm on several GPUs.

    Attributes:
        network: from images to logits; shares `model`'s weights.
        prepared: the network with automatic mixed precision and averaged gradients.
        scaler: of the loss; disabled where the precision needs none.
        loss_sums: (1 + terms,) float32, the loss and its unweighted terms times images, summed over the batches with a
            finite loss until they are zeroed; with several processes this rank's part.
        statistics: floating-point buffers of the model, which batch norm has, if the precision needs a scaler.
        nonfinite: (1 + terms,) float32, the images of batches in which the loss and each term were NaN or infinite,
            counted until they are zeroed; with several processes this rank's part.
        grad_norm: () float32, the gradient's norm in the last step, before clipping.
        overflows: () float32, the steps whose gradient was NaN or infinite, counted until it is zeroed; the same in
            every process.  A scaler skips such steps.
        compile_s: seconds that compiling took; None without compiling.
    """

    def __init__(  # noqa: PLR0917  what a step consists of
        self,
        accelerator: Accelerator,
        model: nn.Module,
        criterion: HybridLoss,
        optimizer: AdamW,
        schedule: LambdaLR,
        clip: float,
        average: WeightAverage | None = None,
    ):
        """Prepare model and optimizer; with several processes a collective.

        Args:
            accelerator: of this training alone.
            model: on the accelerator's device; a SegFormer, or a SegformerWithEdges if the loss needs edge logits.
            criterion: the loss.
            optimizer: of the model's parameters.
            schedule: of the optimizer.  Not prepared: a prepared one steps once for every process.  It counts the steps
                that the scaler skips, as in the source: fused AdamW skips them on the GPU, unknown to the host.
            clip: largest norm of the gradient, above 0.
            average: updated after every step; None for no average.
        """
        self.accelerator, self.model, self.criterion = accelerator, model, criterion
        self.optimizer, self.schedule, self.clip = optimizer, schedule, clip
        self.average = average
        self.device, self.world = accelerator.device, criterion.world
        # torch warns of the depthwise convolutions; their copies take a few kilobytes.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self.network = Network(model)
        self.prepared, self.prepared_optimizer = accelerator.prepare(self.network, optimizer)
        if self.world.is_distributed:
            # Each process keeps its own statistics (see `World.average_buffers`); by default those of the main process
            # replace the others' in every step. torch 2.14 deprecates the argument of this name, not the attribute,
            # and Accelerate 1.15 does not know the new argument.
            self.prepared.broadcast_buffers = False
        self.scaler = accelerator.scaler or GradScaler(self.device.type, enabled=False)
        self.statistics = list(filter(torch.is_floating_point, model.buffers())) if self.scaler.is_enabled() else []
        self.loss_sums = torch.zeros(1 + len(criterion.terms), device=self.device)
        self.nonfinite = torch.zeros_like(self.loss_sums)
        self.grad_norm = torch.zeros((), device=self.device)
        self.overflows = torch.zeros_like(self.grad_norm)
        self.compile_s: float | None = None

    def __call__(self, group: MicroBatches) -> None:
        """Train on the batches of one step."""
        self.update(group)
        self.finish()

    def finish(self) -> None:
        """Advance the schedule, and the average of the weights, after the weights have changed."""
        self.schedule.step()
        if self.average:
            self.average.update(self.schedule.last_epoch)

    def update(self, group: MicroBatches) -> None:
        """Change the weights once, by the gradients of all batches."""
        accelerator = self.accelerator
        # Without a prepared data loader Accelerate does not know that the last group of an epoch may be shorter.
        accelerator.step, accelerator.gradient_accumulation_steps = 0, len(group)
        for all_images, all_labels in group:
            images, labels = local_batch(all_images, all_labels, self.world)
            frames = len(all_labels)
            with accelerator.accumulate(self.prepared):
                with self.keeping_finite_statistics():
                    prediction = self.prepared(images)
                    loss, terms = self.criterion(prediction.logits, labels, frames, prediction.edge_logits)
                    # Accelerate averages gradients over the processes, and those of the parts of a loss must be summed.
                    accelerator.backward(loss * self.world.world_size)
                if accelerator.sync_gradients:
                    self.set_grad_norm(accelerator.clip_grad_norm_(self.model.parameters(), self.clip))
                self.prepared_optimizer.step()
                self.prepared_optimizer.zero_grad()
            self.add_losses(torch.stack([loss.detach(), *terms.values()]), frames)

    @contextmanager
    def keeping_finite_statistics(self) -> Iterator[None]:
        """Restore the statistics of batch norm that an overflow has made NaN or infinite, after the backward pass.

        The scaler skips the step of such a batch; the statistics would spoil every later evaluation.
        """
        before = [buffer.clone() for buffer in self.statistics]
        yield
        for buffer, kept in zip(self.statistics, before, strict=True):
            buffer.copy_(torch.where(buffer.isfinite(), buffer, kept))

    def set_grad_norm(self, norm: Tensor) -> None:
        """Record the norm () of a step's gradient, and count the step in `overflows` if it is not finite."""
        self.grad_norm.copy_(norm)
        self.overflows += ~norm.isfinite()

    def add_losses(self, values: Tensor, frames: int) -> None:
        """Add the loss and terms of a batch, (1 + terms,) float32, to `loss_sums` if the loss is finite.

        Args:
            values: the loss, which is not finite if a term is not, and its unweighted terms.
            frames: images of the whole batch.
        """
        finite = values.isfinite()
        self.loss_sums += torch.where(finite[0], values, 0) * frames
        self.nonfinite += ~finite * (frames / self.world.world_size)
