"""The processes that train one model together: what Accelerate lacks for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather, parse_flag_from_env, reduce
from torch import Tensor, nn

from fgseg.config.errors import ConfigError
from fgseg.labels import VOID


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes; by default a single process.

    Accelerate has one global `PartialState` instead of a value.  Losses and metrics are pure functions, so they take
    the group as an argument; with a single process they call nothing of Accelerate, which torch.compile cannot trace.

    Every method that communicates is a collective: all processes call it, in the same order.

    Attributes:
        rank: in [0, world_size).
        world_size: at least 1.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes checkpoints and reports."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over the processes, detached; with a single process `values` itself."""
        return reduce(values.detach(), "sum") if self.is_distributed else values

    def all_gather(self, values: Tensor) -> Tensor:
        """Concatenate the values of all ranks along the last dimension: (..., P) -> (..., world_size * P), detached.

        Accelerate concatenates along the first dimension.
        """
        if not self.is_distributed:
            return values
        return gather(values.detach()[None]).movedim(0, -2).flatten(-2)

    def local_part(self, values: Tensor) -> Tensor:
        """Return this rank's slice of a gathered tensor: (..., world_size * P) -> (..., P).  No communication."""
        return values.chunk(self.world_size, -1)[self.rank]

    def average_buffers(self, model: nn.Module) -> None:
        """Replace the floating-point buffers of a model by their means over the processes, in place.

        These are the statistics of batch norm.  Accelerate broadcasts those of the main process at best, and torch has
        no synchronised batch norm on the CPU.
        """
        if self.is_distributed:
            for statistics in filter(torch.is_floating_point, model.buffers()):
                statistics.copy_(reduce(statistics, "mean"))


SINGLE_PROCESS = World()


def forget_state_of_accelerate_1() -> None:
    """Let Accelerate forget the state of this process.

    Accelerate 1.15 keeps the first state and refuses another precision or device afterwards.  A worker trains several
    trials, whose precision is searched, and there is no public way to forget the state.
    """
    AcceleratorState._reset_state(True)


def reset_accelerate(cpu: bool = False, **group: str) -> PartialState:
    """Return Accelerate's state of this process, computed anew from torch.distributed and the launcher's variables.

    Args:
        cpu: use no GPU even where there is one; also set by `accelerate launch --cpu`, and where the only GPUs are no
            CUDA devices.
        group: arguments of `torch.distributed.init_process_group`.

    Raises:
        ConfigError: a torch.distributed group was initialised that Accelerate does not see.
    """
    forget_state_of_accelerate_1()
    gloo = dist.is_initialized() and dist.get_world_size() > 1 and not torch.cuda.is_available()
    # Accelerate would choose a GPU of Apple or Intel, on which nothing of this package was tried.
    no_cuda = torch.accelerator.is_available() and not torch.cuda.is_available()
    state = PartialState(cpu=cpu or gloo or no_cuda or parse_flag_from_env("ACCELERATE_USE_CPU"), **group)
    if dist.is_initialized() and state.num_processes != dist.get_world_size():
        raise ConfigError(
            f"torch.distributed has {dist.get_world_size()} processes, Accelerate sees {state.num_processes}; set "
            "RANK, WORLD_SIZE and LOCAL_RANK, as torchrun does"
        )
    if state.device.type == "cuda" and state.device.index is not None:
        torch.cuda.set_device(state.device)  # Accelerate does not where Ray Train names the device
    return state


def current_world() -> World:
    """Return rank and number of processes of the torch.distributed group; SINGLE_PROCESS where none is initialised."""
    state = reset_accelerate()
    return World(state.process_index, state.num_processes)


@contextmanager
def joined_world() -> Iterator[None]:
    """Join the processes that `torchrun` or `accelerate launch` started, by NCCL on GPUs and by gloo elsewhere.

    Accelerate alone joins CPU processes only with `cpu=True`.  Does nothing where a group is initialised already.  A
    single process of torchrun is joined by Accelerate during the training; its group is left at the end as well.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    if dist.is_initialized():
        yield
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_gpus = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        if on_gpus:
            check_gpus(torch.cuda.device_count())
        # The backend is named since Accelerate would take MPI where torch was built with it.
        reset_accelerate() if on_gpus else reset_accelerate(cpu=True, backend="gloo")
    try:
        yield
        if dist.is_initialized():
            # Threads of gloo, which torch 2.14 does not end after a backward pass, free the tensors of the last
            # collective while this one waits.  While the interpreter ends, they would abort the process.
            dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def check_gpus(count: int) -> None:
    """Check that each process of this machine has a GPU of its own.

    Accelerate lets several processes share a GPU, where NCCL then stops with an error.

    Args:
        count: GPUs of this machine.

    Raises:
        ConfigError: there are more processes, or LOCAL_RANK is not set.
    """
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("LOCAL_RANK is not set, which selects the GPU of a process; start with torchrun")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1))
    if local > count:
        raise ConfigError(
            f"{local} processes on this machine, which has {count} GPUs; start at most {count}, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def local_batch(images: Tensor, labels: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Cut this rank's frames out of a batch that all processes hold.

    The batch is cut into consecutive parts of equal length.  Where it does not divide, the last parts are filled with
    the batch's last frame, all void, which adds zero to every loss term.  Accelerate repeats frames as they are, which
    would change the loss.

    Args:
        images: (B, 3, H, W).
        labels: (B, H, W).
        world: this process's rank and the number of processes.

    Returns:
        Images (P, 3, H, W) and labels (P, H, W), where P is B over the number of processes, rounded up.
    """
    if not world.is_distributed:
        return images, labels
    frames = len(labels)
    length = -(-frames // world.world_size)
    indices = torch.arange(world.rank * length, (world.rank + 1) * length, device=labels.device)
    taken, filled = indices.clamp(max=frames - 1), indices >= frames
    return images[taken], labels[taken].masked_fill(filled[:, None, None], VOID)
