"""One CUDA graph of a step: captured once, replayed with the batches of every later step."""

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor
from torch.optim import AdamW

from fgseg.training.step import MicroBatches

WARM_UP = 3
"""Steps before the capture: they compile, and allocate what a capture must find allocated (AdamW's moments)."""


class RecordedStep:
    """A captured step and the tensors that it reads its batches from."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: list[tuple[Tensor, Tensor]]):
        self.graph, self.inputs = graph, inputs

    def replay(self, group: MicroBatches) -> None:
        """Copy the batches to the inputs of the graph, and run it; their shapes are those of the capture."""
        for kept, given in zip(self.inputs, group, strict=True):
            for into, batch in zip(kept, given, strict=True):
                into.copy_(batch)
        self.graph.replay()


def record(update: Callable[[MicroBatches], None], group: MicroBatches, optimizer: AdamW) -> RecordedStep:
    """Capture a step as a CUDA graph over copies of the batches; the warm-up steps change the weights.

    Args:
        update: changes the weights once; does all its work on the GPU and reads no number on the host.
        group: batches on the GPU.
        optimizer: the one that `update` steps.

    Raises:
        RuntimeError: the capture failed; its memory was released.  Call `end_failed_capture` before the next capture.
    """
    gc.collect()  # what a cycle keeps of an earlier backward pass belongs to another stream, and ends a capture
    stream, current = capture_stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # what autograd keeps of a stream must be that of the capture
        for _ in range(WARM_UP):
            update(group)
    current.wait_stream(stream)
    inputs = [(images.clone(), labels.clone()) for images, labels in group]
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # AdamW refuses to be captured without this, and warns of it outside a capture.
    set_capturable(optimizer, True)
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            update(inputs)
    except BaseException:
        release_pool_of_torch_2_14(graph, pool)
        raise
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        set_capturable(optimizer, False)
    return RecordedStep(graph, inputs)


def set_capturable(optimizer: AdamW, allowed: bool) -> None:
    """Set AdamW's option `capturable`; its fused form keeps all its state on the GPU in either case."""
    for settings in optimizer.param_groups:
        settings["capturable"] = allowed


def release_pool_of_torch_2_14(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Release the memory pool of a capture that failed; the tensors in it keep their memory until they are freed.

    A capture that CUDA has invalidated cannot be ended: `CUDAGraph.capture_end` raises before it ends the allocation
    to the pool, and `CUDAGraph.reset` releases the pools of ended captures only (torch 2.11 to 2.14,
    aten/src/ATen/cuda/CUDAGraph.cpp).  The pool would stay allocated, and while it counts as being captured the
    allocator does not return cached memory before it reports out of memory.  torch has no public function for it:
    `torch.cuda.use_mem_pool` ends with these two, but refuses a pool that is being captured to.
    """
    try:
        graph.pool()
    except RuntimeError:  # the capture was not ended
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # the allocation was ended before the error
            torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def end_failed_capture(device: torch.device) -> None:
    """Free the memory of a failed capture, and end what it interrupted; call it once no error refers to its tensors.

    Before torch 2.12 the random numbers of a failed capture stay reserved for it until another one succeeds.
    """
    gc.collect()
    current = torch.cuda.current_stream()
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=capture_stream()):
        torch.zeros((), device=device)
    torch.cuda.set_stream(current)
    torch.cuda.empty_cache()


@cache
def capture_stream() -> torch.cuda.Stream:
    """Return one stream for all trials of the process: CUDA's libraries keep memory for every stream they used."""
    return torch.cuda.Stream()
