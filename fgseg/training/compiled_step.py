"""The optimizer step compiled and, on a GPU, recorded as one CUDA graph; the plain step where that does not work."""

import gc
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fgseg.config.errors import one_line
from fgseg.data.batches import normalise
from fgseg.training.step import MicroBatches, Step

log = logging.getLogger(__name__)

BACKEND = "inductor"
"""What torch.compile turns its graphs into."""
WARM_UP = 3
"""Steps before a CUDA graph is recorded: they compile, and make what a recording must find there (AdamW's moments)."""
TOLERANCE = 0.2
"""Relative difference allowed between the plain and the compiled step's loss, terms and gradient norm.

Compiled code rounds otherwise and, on a GPU, draws other numbers for dropout and drop path: those move the loss of a
SegFormer-B0 at the start of its training by 0.3 % and the norm by 0.5 %, and more when it fits a few frames closely.
Code that computes something else is farther off."""
RANDOMNESS_FACTOR = 3
"""Where two plain steps with other random numbers differ by more than that, so many times their difference is allowed:
near the end of a training a loss may be small and hang on what is dropped."""
TRIED_SCALE = 2.0**10
"""Scale of the loss in a step that is only tried: the scaler's first one may overflow, and leave no norm to compare."""


class CompiledStep(Step):
    """The same step through torch.compile; on a GPU, all of it but the schedule is one CUDA graph.

    The first group prepares it: everything is compiled, recorded, and held against the plain step, in steps that are
    taken back.  Where that fails, a warning says why and every step is the plain one.  Model and loss are compiled
    apart, since only the loss depends on the family of a trial.  A group of another shape than the first one (the
    epoch's last) goes the plain way instead of being compiled as well.
    """

    def __init__(self, *parts: object, cache: Path):
        """Remember the parts; nothing is compiled before the first group.

        Args:
            parts: those of `Step`.
            cache: folder of compiled code, shared by every process on the machine.
        """
        super().__init__(*parts)  # type: ignore[arg-type]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        self.fast: list[Callable] = []
        self.shapes: list[torch.Size] | None = None
        self.usable = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, group: MicroBatches) -> None:
        """Train on the batches of one step."""
        shapes = [labels.shape for _, labels in group]
        if self.shapes is None:
            self.shapes, self.usable = shapes, self.prepare(group)
        if not self.usable or shapes != self.shapes:
            return super().__call__(group)
        self.replay(group)
        self.schedule.step()

    def prepare(self, group: MicroBatches) -> bool:
        """Make the compiled step and compare it with the plain one; the state stays what it is.

        Returns:
            Whether it can be used; if not, a warning was given.

        Raises:
            RuntimeError: memory ran out in the plain step, which is the least that training needs.
        """

        def plain() -> None:
            self.update(group, self.predict, self.criterion)

        started = time.perf_counter()
        first = self.dry_run_step(plain)
        try:
            fast = self.compile_and_check(group)
            # After the recording, which keeps memory of its own: an epoch's last group needs both.
            trouble = self.difference(first, self.dry_run_step(plain, seed=1), fast)
        except Exception as error:  # a compiler may raise anything, and the plain step needs none
            trouble = error_and_root(error)
        self.seconds = time.perf_counter() - started
        if trouble:
            self.fast, self.graph, self.inputs = [], None, []
            self.release_failed_capture()
            log.warning("train.compile: the compiled step is not used, the plain one trains instead: %s", trouble)
        else:
            log.info("compiling the step took %.1f s", self.seconds)
        return not trouble

    def compile_and_check(self, group: MicroBatches) -> list[float]:
        """Compile, on a GPU record, and rehearse the step."""
        torch.compiler.reset()  # what an earlier trial compiled counts against a limit, and is found on disk anyway
        predict, criterion = (
            torch.compile(part, backend=BACKEND, dynamic=False) for part in (predict_unhooked, self.criterion)
        )
        # Not a method: the step would hold itself, and its part of the GPU's memory when its trial is over.
        self.fast = [partial(predict, self.model), criterion]
        if self.device.type == "cuda":
            with restoring_state(self):
                self.record(group)
        return self.dry_run_step(lambda: self.replay(group))

    def dry_run_step(self, act: Callable[[], None], seed: int = 0) -> list[float]:
        """Take a step and take it back; returns the sums that it gave and the gradient's norm."""
        with restoring_state(self):
            torch.manual_seed(seed)
            self.loss_sums.zero_()
            act()
            return [*self.loss_sums.tolist(), self.grad_norm.item()]

    def difference(self, plain: list[float], again: list[float], fast: list[float]) -> str:
        """What the fast step gave that rounding and chance do not explain, in words; else nothing.

        Args:
            plain, again: what the plain step gave with two sets of random numbers.
            fast: what the compiled step gave.
        """
        names = ("the loss", *(f"loss.{name}" for name in self.criterion.terms), "the gradient's norm")
        for name, a, b, c in zip(names, plain, again, fast, strict=True):
            allowed = 1e-6 + max(TOLERANCE * abs(a), RANDOMNESS_FACTOR * abs(a - b))
            if math.isfinite(a) and not abs(a - c) <= allowed:
                return f"{name} is {c:.6g} on the first batches, the plain step's {a:.6g}"
        return ""

    def record(self, group: MicroBatches) -> None:
        """Record the step as a CUDA graph over copies of the batches; the steps that warm up are real ones."""
        gc.collect()  # what a cycle keeps of an earlier backward pass belongs to another stream, and ends a recording
        stream, current = recording_stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # what autograd keeps of a stream must be that of the recording
            for _ in range(WARM_UP):
                self.update(group, *self.fast)
        current.wait_stream(stream)
        inputs = [(images.clone(), labels.clone()) for images, labels in group]
        graph = torch.cuda.CUDAGraph()
        # AdamW refuses to be recorded without this, and warns of it outside a recording.
        self.allow_recording(True)
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.update(inputs, *self.fast)
        finally:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind
            self.allow_recording(False)
        self.graph, self.inputs = graph, inputs

    def release_failed_capture(self) -> None:
        """Give back what a step that is not used took, and end what a recording that broke off left behind.

        Before torch 2.12 its random numbers stay reserved for the recording until another one succeeds.
        """
        if self.device.type != "cuda":
            return
        gc.collect()
        current = torch.cuda.current_stream()
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=recording_stream()):
            torch.zeros((), device=self.device)
        torch.cuda.set_stream(current)
        torch.cuda.empty_cache()

    def allow_recording(self, allowed: bool) -> None:
        """Set what AdamW calls capturable; its fused form keeps all its state on the GPU in either case."""
        for settings in self.optimizer.param_groups:
            settings["capturable"] = allowed

    def replay(self, group: MicroBatches) -> None:
        """Change the weights the compiled way: on a GPU copy the batches to where the graph reads them, and run it."""
        if self.graph is None:
            return self.update(group, *self.fast)
        for kept, given in zip(self.inputs, group, strict=True):
            for into, batch in zip(kept, given, strict=True):
                into.copy_(batch)
        self.graph.replay()


@cache
def recording_stream() -> torch.cuda.Stream:
    """One for all trials of the process: CUDA's libraries keep memory for every stream on which they worked."""
    return torch.cuda.Stream()


def error_and_root(error: BaseException) -> str:
    """Format an error and its root cause in one line; the error that ends a failed capture hides its cause."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    told = [one_line(e, with_type=True)[:250] for e in (error, root)]
    return " after ".join(dict.fromkeys(told))


def predict_unhooked(model: nn.Module, images: Tensor) -> Tensor:
    """See `Step.predict`; without the hooks by which Transformers collects the stages: they end a graph."""
    maps = [normalise(images)]
    for stage in model.get_submodule("segformer.stages").children():
        maps.append(stage(maps[-1]))
    logits: Tensor = model.get_submodule("decode_head")(maps[1:])
    return logits


@contextmanager
def restoring_state(step: Step) -> Iterator[None]:
    """Steps inside change nothing: weights, moments, sums, scale and random state are afterwards what they were.

    Tensors keep their places, for a recorded step goes on using them.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in state_of(step)}
    scale, gpus = step.scaler.state_dict(), [torch.cuda.current_device()] if step.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        try:
            step.scaler.load_state_dict(scale | {"scale": TRIED_SCALE})
            yield
        except BaseException:
            # One that stopped halfway through a step refuses the next.
            step.scaler = GradScaler(step.device.type, enabled=step.scaler.is_enabled())
            raise
        finally:
            step.scaler.load_state_dict(scale)
            step.optimizer.zero_grad()
            with torch.no_grad():
                for tensor in state_of(step):
                    if id(tensor) in before:
                        tensor.copy_(before[id(tensor)])
                    else:
                        tensor.zero_()  # a moment that the first step made begins at 0


def state_of(step: Step) -> list[Tensor]:
    """Every tensor that a step changes."""
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    return [*step.model.parameters(), *step.model.buffers(), *moments, step.loss_sums, step.grad_norm]


def wants_compiling(setting: str, device: torch.device) -> bool:
    """What `train.compile` means: auto is on where there is a GPU."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")
