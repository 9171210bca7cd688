"""One optimizer step."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.data.batches import normalise
from fgseg.distributed import join_gradients, local_batch
from fgseg.losses import HybridLoss

MicroBatches = Sequence[tuple[Tensor, Tensor]]
"""The batches of one optimizer step: images (B, 3, H, W) uint8 and labels (B, H, W) uint8 each.

Several processes are given the same whole batches; each computes its own frames of them.
"""


class Step:
    """Forward, backward, clipping, AdamW and schedule.

    Nothing in it waits for the device, but synchronised batch norm where several GPUs train one model.

    Attributes:
        sums: (1 + terms,) float32, the loss and its unweighted terms times images, summed until they are zeroed; with
            several processes their parts.
        norm: () float32, the gradient's norm in the last step, before it was clipped.
        seconds: what compiling took; None where nothing was compiled.
    """

    def __init__(  # noqa: PLR0917  what a step consists of
        self,
        accelerator: Accelerator,
        model: nn.Module,
        criterion: HybridLoss,
        optimizer: AdamW,
        schedule: LambdaLR,
        clip: float,
    ):
        self.accelerator, self.model, self.criterion = accelerator, model, criterion
        self.optimizer, self.schedule, self.clip = optimizer, schedule, clip
        self.device, self.processes = accelerator.device, criterion.processes
        self.network = model if self.processes.alone else join_gradients(model)
        self.scaler = accelerator.scaler or GradScaler(self.device.type, enabled=False)
        self.loss_sums = torch.zeros(1 + len(criterion.terms), device=self.device)
        self.grad_norm = torch.zeros((), device=self.device)
        self.seconds: float | None = None

    def __call__(self, group: MicroBatches) -> None:
        """Train on the batches of one step."""
        self.update(group, self.predict, self.criterion)
        # Also where the scaler skips its step: whether it does, only the device knows (see `take_back_skipped`).
        self.schedule.step()

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, 7, H/4, W/4) for images (B, 3, H, W) uint8."""
        logits: Tensor = self.network(pixel_values=normalise(images)).logits
        return logits

    def update(self, group: MicroBatches, predict: Callable[..., Tensor], criterion: Callable[..., tuple]) -> None:
        """Change the weights; `predict` and `criterion` compute what the methods of that name do."""
        for number, (all_images, all_labels) in enumerate(group, 1):
            frames = len(all_labels)
            images, labels = local_batch(all_images, all_labels, self.processes)
            with self.maybe_no_sync(last=number == len(group)):
                with self.accelerator.autocast():
                    logits = predict(images)
                loss, terms = criterion(logits, labels, frames)
                # The gradients of several processes are averaged, and those of the parts of a loss must be summed.
                self.scaler.scale(loss * self.processes.world_size / len(group)).backward()
            self.loss_sums += torch.stack([loss.detach(), *terms.values()]) * frames
        self.scaler.unscale_(self.optimizer)
        self.grad_norm.copy_(clip_grad_norm_(self.model.parameters(), self.clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def maybe_no_sync(self, last: bool) -> AbstractContextManager[None]:
        """The gradients of several processes meet once a step, in the backward pass of its last batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def sync_schedule_with_skipped_steps(self) -> None:
        """Set the schedule to the steps that AdamW took; those which the scaler skipped do not count, as in the source.

        This waits for the device: once an epoch.
        """
        counts = [state["step"] for state in self.optimizer.state.values()]
        taken = int(torch.stack(counts).max()) if self.scaler.is_enabled() and counts else self.schedule.last_epoch
        if taken != self.schedule.last_epoch:
            self.schedule.last_epoch = taken - 1
            self.schedule.step()
