"""The optimizer step of a single process, compiled and, on a GPU, captured as one CUDA graph."""

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
from torch.nn.utils import clip_grad_norm_

from fgseg.config.errors import one_line
from fgseg.data.batches import normalise
from fgseg.model.edge_head import Prediction, SegformerWithEdges
from fgseg.training.step import MicroBatches, Step

log = logging.getLogger(__name__)

BACKEND = "inductor"
"""Backend of torch.compile."""
WARM_UP = 3
"""Steps before the capture: they compile, and allocate what a capture must find allocated (AdamW's moments)."""
TOLERANCE = 0.2
"""Relative difference allowed between the plain and the compiled step's loss, terms and gradient norm.

Compiled code rounds differently and, on a GPU, draws other random numbers for dropout and drop path.  Measured on a
SegFormer-B0 at the start of its training: 0.3 % of the loss and 0.5 % of the norm, more when it fits a few frames
closely.  Beyond the limit the plain step is used."""
RANDOMNESS_FACTOR = 3
"""Allowed difference as a multiple of that between two plain steps with different random numbers, where it is larger
than `TOLERANCE`: near the end of a training a small loss depends on what dropout drops."""
TRIED_SCALE = 2.0**10
"""Scale of the loss in a dry run: the scaler's initial scale may overflow, which leaves no norm to compare."""


class CompiledStep(Step):
    """Computes the step through torch.compile; on a GPU, all of it but the schedule is one CUDA graph.

    At the first group everything is compiled, captured and compared with the plain step, in dry runs that leave the
    state unchanged.  If that fails, a warning gives the reason and the plain step is used.  Model and loss are compiled
    separately, since only the loss depends on the family of a trial.  A group whose shapes differ from the first one's
    (the last of an epoch) uses the plain step instead of being compiled as well.
    """

    def __init__(self, *parts: object, cache: Path):
        """Create the step; it is compiled at the first group.

        Args:
            parts: the arguments of `Step`.
            cache: folder of compiled code, shared by all processes of the machine.
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
        self.finish()

    def prepare(self, group: MicroBatches) -> bool:
        """Compile the step and compare it with the plain one; the state is unchanged afterwards.

        Returns:
            Whether the compiled step can be used; if not, a warning was logged.

        Raises:
            RuntimeError: out of memory in the plain step, which training needs in any case.
        """
        started = time.perf_counter()
        first = self.dry_run_step(lambda: self.update(group))
        try:
            fast = self.compile_and_check(group)
            # After the capture, which keeps memory of its own: an epoch's last group needs both.
            trouble = self.difference(first, self.dry_run_step(lambda: self.update(group), seed=1), fast)
        except Exception as error:  # a compiler may raise anything, and the plain step needs none
            trouble = error_and_root(error)
        self.compile_s = time.perf_counter() - started
        if trouble:
            self.fast, self.graph, self.inputs = [], None, []
            self.release_failed_capture()
            log.warning("train.compile: the compiled step is not used, the plain one trains instead: %s", trouble)
        else:
            log.info("compiling the step took %.1f s", self.compile_s)
        return not trouble

    def compile_and_check(self, group: MicroBatches) -> list[float]:
        """Compile the step, capture it on a GPU, and return the loss sums and gradient norm of a dry run."""
        torch.compiler.reset()  # code of earlier trials counts against a limit, and is cached on disk anyway
        predict, criterion = (
            torch.compile(part, backend=BACKEND, dynamic=False) for part in (predict_unhooked, self.criterion)
        )
        # Not a bound method: the step would refer to itself and keep its GPU memory after the trial.
        self.fast = [partial(predict, self.model), criterion]
        if self.device.type == "cuda":
            with restoring_state(self):
                self.capture(group)
        return self.dry_run_step(lambda: self.replay(group))

    def dry_run_step(self, act: Callable[[], None], seed: int = 0) -> list[float]:
        """Take a step, restore the state, and return the loss sums and the gradient norm of that step."""
        with restoring_state(self):
            torch.manual_seed(seed)
            self.loss_sums.zero_()
            act()
            return [*self.loss_sums.tolist(), self.grad_norm.item()]

    def difference(self, plain: list[float], again: list[float], fast: list[float]) -> str:
        """Describe the first value of the compiled step that is out of tolerance; "" where there is none.

        Args:
            plain, again: loss sums and gradient norm of the plain step with two sets of random numbers.
            fast: the same of the compiled step.
        """
        names = ("the loss", *(f"loss.{name}" for name in self.criterion.terms), "the gradient's norm")
        for name, a, b, c in zip(names, plain, again, fast, strict=True):
            allowed = 1e-6 + max(TOLERANCE * abs(a), RANDOMNESS_FACTOR * abs(a - b))
            if math.isfinite(a) and not abs(a - c) <= allowed:
                return f"{name} is {c:.6g} on the first batches, the plain step's {a:.6g}"
        return ""

    def update_unwrapped(self, group: MicroBatches) -> None:
        """Change the weights once, by the compiled model and loss and without Accelerate's wrappers.

        By hand: a CUDA graph keeps what the step does on the GPU only, and reading one number on the host ends its
        capture.  The prepared model and optimizer work on the host in every call (a patched `forward`, a patched
        `AdamW.step` from which they conclude whether the scaler skipped a step).
        """
        predict, criterion = self.fast
        for images, labels in group:
            with self.accelerator.autocast():
                output = predict(images)
            logits, edge_logits = output if isinstance(output, tuple) else (output, None)
            loss, terms = criterion(logits, labels, None, edge_logits)
            self.scaler.scale(loss / len(group)).backward()
            self.add_losses(torch.stack([loss.detach(), *terms.values()]), len(labels))
        self.scaler.unscale_(self.optimizer)
        self.grad_norm.copy_(clip_grad_norm_(self.model.parameters(), self.clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def capture(self, group: MicroBatches) -> None:
        """Capture the step as a CUDA graph over copies of the batches; the warm-up steps change the weights."""
        gc.collect()  # what a cycle keeps of an earlier backward pass belongs to another stream, and ends a capture
        stream, current = capture_stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # what autograd keeps of a stream must be that of the capture
            for _ in range(WARM_UP):
                self.update_unwrapped(group)
        current.wait_stream(stream)
        inputs = [(images.clone(), labels.clone()) for images, labels in group]
        graph = torch.cuda.CUDAGraph()
        # AdamW refuses to be captured without this, and warns of it outside a capture.
        self.allow_capture(True)
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.update_unwrapped(inputs)
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
            self.allow_capture(False)
        self.graph, self.inputs = graph, inputs

    def release_failed_capture(self) -> None:
        """Free the memory of a step that is not used, and end a capture that was interrupted.

        Before torch 2.12 its random numbers stay reserved for the capture until another one succeeds.
        """
        if self.device.type != "cuda":
            return
        gc.collect()
        current = torch.cuda.current_stream()
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=capture_stream()):
            torch.zeros((), device=self.device)
        torch.cuda.set_stream(current)
        torch.cuda.empty_cache()

    def allow_capture(self, allowed: bool) -> None:
        """Set AdamW's option `capturable`; its fused form keeps all its state on the GPU in either case."""
        for settings in self.optimizer.param_groups:
            settings["capturable"] = allowed

    def replay(self, group: MicroBatches) -> None:
        """Take a compiled step: on a GPU copy the batches to the inputs of the graph, and run it."""
        if self.graph is None:
            return self.update_unwrapped(group)
        for kept, given in zip(self.inputs, group, strict=True):
            for into, batch in zip(kept, given, strict=True):
                into.copy_(batch)
        self.graph.replay()


@cache
def capture_stream() -> torch.cuda.Stream:
    """Return one stream for all trials of the process: CUDA's libraries keep memory for every stream they used."""
    return torch.cuda.Stream()


def error_and_root(error: BaseException) -> str:
    """Format an error and its root cause in one line; the error that ends a failed capture hides its cause."""
    root = error
    while root.__context__ is not None:
        root = root.__context__
    texts = [one_line(e, with_type=True)[:250] for e in (error, root)]
    return " after ".join(dict.fromkeys(texts))


def predict_unhooked(model: nn.Module, images: Tensor) -> Tensor | Prediction:
    """Compute logits (B, C, H/4, W/4), with an edge head also those of the edges, for images (B, 3, H, W) uint8.

    Without the hooks by which Transformers (5.17) collects the stages: torch.compile splits its graph at each.
    """
    maps = [normalise(images)]
    for stage in model.get_submodule("segformer.stages").children():
        maps.append(stage(maps[-1]))
    if isinstance(model, SegformerWithEdges):
        return model.predict(maps[1:])
    logits: Tensor = model.get_submodule("decode_head")(maps[1:])
    return logits


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
    sums = [step.loss_sums, step.nonfinite, step.grad_norm]
    return [*step.model.parameters(), *step.model.buffers(), *moments, *sums]


def wants_compiling(setting: str, device: torch.device) -> bool:
    """Return whether `train.compile` selects the compiled step; auto does on a GPU."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")
