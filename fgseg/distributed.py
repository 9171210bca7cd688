"""The processes that train one model together: who is who, and sums and gathers over all of them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fgseg.labels import VOID

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of its torch.distributed group; by default the only one.

    With more than one, every method is a collective: all processes call it, in the same order.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world_size == 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The element-wise sum over the processes, detached; alone the values themselves."""
        if self.alone:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, values: Tensor) -> Tensor:
        """The values of all processes, (..., P) each, detached and side by side by rank: (..., size * P)."""
        if self.alone:
            return values
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        dist.all_gather(parts, values.detach().contiguous())
        return torch.cat(parts, -1)

    def local_part(self, values: Tensor) -> Tensor:
        """What `gather` put where this process's values are; no collective."""
        return values.chunk(self.world_size, -1)[self.rank]

    def broadcast_object(self, value: T) -> T:
        """The value that the first process gave; anything that can be pickled."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def average_buffers(self, model: nn.Module) -> None:
        """Give the model of every process the mean of their statistics (of batch norm), in place."""
        if self.alone:
            return
        for statistics in filter(torch.is_floating_point, model.buffers()):
            dist.all_reduce(statistics)
            statistics.div_(self.world_size)


SINGLE_PROCESS = World()


def current_world() -> World:
    """This process in the torch.distributed group that was initialised, or alone where none was."""
    if not (dist.is_available() and dist.is_initialized()):
        return SINGLE_PROCESS
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined_world() -> Iterator[None]:
    """Belong to those that `torchrun` or `accelerate launch` started, by NCCL on GPUs and by gloo elsewhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.destroy_process_group()


def join_gradients(model: nn.Module) -> DistributedDataParallel:
    """The model with gradients that are averaged over the processes in the backward pass; it shares all weights."""
    # Said of the depthwise convolutions; it costs a copy of a few kilobytes.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    joined = DistributedDataParallel(model)
    joined.broadcast_buffers = False  # each process keeps statistics of its own: see `Processes.average_buffers`
    return joined


def local_batch(images: Tensor, labels: Tensor, processes: World) -> tuple[Tensor, Tensor]:
    """This process's frames of a batch that all processes hold.

    The batch is cut into consecutive parts of equal length.  Where it does not divide, the last parts are filled with
    its last frame, all void, which adds zero to every loss term.

    Args:
        images: (B, 3, H, W).
        labels: (B, H, W).
        processes: decides the part.

    Returns:
        Images (P, 3, H, W) and labels (P, H, W), where P is B over the number of processes, rounded up.
    """
    if processes.alone:
        return images, labels
    frames = len(labels)
    length = -(-frames // processes.world_size)
    places = torch.arange(processes.rank * length, (processes.rank + 1) * length, device=labels.device)
    taken, filled = places.clamp(max=frames - 1), places >= frames
    return images[taken], labels[taken].masked_fill(filled[:, None, None], VOID)
