"""Dry runs of a step, and the comparison of the compiled step with the plain one."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fgseg.training.step import Step

TOLERANCE = 0.01
"""Relative difference allowed between the plain and the compiled step's loss, terms and gradient norm.

Both draw the same random numbers, so that they differ by rounding only."""
TRIED_SCALE = 2.0**10
"""Scale of the loss in a dry run: the scaler's initial scale may overflow, which leaves no norm to compare."""


def dry_run(step: Step, act: Callable[[], None]) -> list[float]:
    """Take a step, restore the state, and return the loss sums and the gradient norm of that step.

    All are NaN if the loss or a term overflowed.  Every dry run starts from the same random state.
    """
    with restoring_state(step):
        torch.manual_seed(0)
        step.loss_sums.zero_()
        step.nonfinite.zero_()
        act()
        overflowed = bool(step.nonfinite.any())
        return [math.nan if overflowed else value for value in (*step.loss_sums.tolist(), step.grad_norm.item())]


def difference(terms: Sequence[str], plain: Sequence[float], compiled: Sequence[float]) -> str:
    """Describe the first value of the compiled step that is out of tolerance; "" where there is none.

    Args:
        terms: names of the terms of the loss.
        plain, compiled: loss sums and gradient norm of a dry run, see `dry_run`.
    """
    names = ("the loss", *(f"loss.{name}" for name in terms), "the gradient's norm")
    for name, expected, got in zip(names, plain, compiled, strict=True):
        allowed = 1e-6 + TOLERANCE * abs(expected)
        if math.isfinite(expected) and not abs(got - expected) <= allowed:
            return f"{name} is {got:.6g} on the first batches, the plain step's {expected:.6g}"
    return ""


@contextmanager
def restoring_state(step: Step) -> Iterator[None]:
    """Restore weights, moments, sums, scale and random state after the block, also after an error in it.

    Tensors keep their addresses, which a captured step goes on using.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in state_of(step)}
    scale, gpus = step.scaler.state_dict(), [torch.cuda.current_device()] if step.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        try:
            step.scaler.load_state_dict(scale | {"scale": TRIED_SCALE})
            yield
        finally:
            # A scaler that stopped halfway through a step refuses the next; a scale of its own ends the step. Before
            # its first use it has no scale, and refuses that as well.
            step.scaler.scale(torch.zeros((), device=step.device))
            step.scaler.update(TRIED_SCALE)
            step.scaler.load_state_dict(scale)
            step.optimizer.zero_grad()
            with torch.no_grad():
                for tensor in state_of(step):
                    if id(tensor) in before:
                        tensor.copy_(before[id(tensor)])
                    else:
                        tensor.zero_()  # a moment that the first step allocated starts at 0


def state_of(step: Step) -> list[Tensor]:
    """List every tensor that a step changes."""
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    sums = [step.loss_sums, step.nonfinite, step.grad_norm, step.overflows]
    return [*step.model.parameters(), *step.model.buffers(), *moments, *sums]
