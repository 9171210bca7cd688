"""The optimizer step through compiled model and loss and, with a single process on a GPU, as one CUDA graph."""

import logging
import math
import os
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from fgseg.config.errors import one_line
from fgseg.devices import is_out_of_memory
from fgseg.distributed import local_batch
from fgseg.training.compiled_parts import CACHE, CompiledParts, key_of, predict_by
from fgseg.training.graph_recorder import RecordedStep, end_failed_capture, record
from fgseg.training.network import predict, without_hooks
from fgseg.training.step import MicroBatches, Step
from fgseg.training.step_comparison import difference, dry_run, restoring_state

log = logging.getLogger(__name__)


class CompiledStep(Step):
    """Computes the step through compiled parts; with a single process on a GPU it is one CUDA graph.

    The graph has all but the schedule and the average of the weights.

    At the first group the parts are taken from the cache of this process, or compiled, and the step is captured.  The
    first step of a cache key is compared with the plain step.  All of that happens in dry runs that leave the state
    unchanged.  If it fails, a warning gives the reason and the plain step is used.  A group whose shapes differ from
    the first one's (the last of an epoch) uses the plain step instead of being compiled as well.

    With several processes only the encoder is compiled, in the loop of Accelerate.  The processes decide together.

    Attributes:
        unhooked: a copy of the model for the compiled code, with the same tensors.
        compiled: the parts in use; None if the plain step is used.
        recorded: the CUDA graph in use, or None.
    """

    def __init__(self, *parts: object, cache: Path, steps: int | None = None):
        """Create the step; it is compiled at the first group.

        Args:
            parts: the arguments of `Step`.
            cache: folder of compiled code, shared by all processes of the machine.
            steps: optimizer steps of the whole training, which must justify compiling (see
                `PartsCache.justifies_compiling`); None compiles in any case.
        """
        super().__init__(*parts)  # type: ignore[arg-type]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        self.steps = steps
        self.unhooked = without_hooks(self.model)
        self.shapes: list[torch.Size] | None = None
        self.compiled: CompiledParts | None = None
        self.recorded: RecordedStep | None = None

    def __call__(self, group: MicroBatches) -> None:
        """Train on the batches of one step."""
        shapes = [labels.shape for _, labels in group]
        if self.shapes is None:
            self.shapes = shapes
            self.prepare(group)
        if self.compiled is None or shapes != self.shapes:
            return super().__call__(group)
        self.take(group)
        self.finish()

    def prepare(self, group: MicroBatches) -> None:
        """Compile the step unless the remaining steps do not justify it; the state is unchanged afterwards.

        Sets `compiled` if the compiled step can be used; if it cannot, a warning was logged.

        Raises:
            RuntimeError: out of memory in the plain step, which training needs in any case.
        """
        key = key_of(self, group)
        if self.steps is not None and not CACHE.justifies_compiling(key, self.steps - self.schedule.last_epoch):
            return
        started = time.perf_counter()
        self.unhooked.train(self.model.training)
        parts = CACHE.get(key)
        trouble = self.agreed(parts.refused) or self.try_parts(parts, group)
        self.compile_s = time.perf_counter() - started
        if trouble:
            self.compiled = self.recorded = None
            if self.device.type == "cuda" and not self.world.is_distributed:
                end_failed_capture(self.device)
            log.warning("train.compile: the compiled step is not used, the plain one trains instead: %s", trouble)
        else:
            log.info("compiling the step took %.1f s", self.compile_s)

    def try_parts(self, parts: CompiledParts, group: MicroBatches) -> str:
        """Compile and capture the step, and compare it with the plain one if these parts were not compared before.

        Returns:
            Why the compiled step cannot be used; "" if it can.
        """
        compared = parts.compared
        plain = [] if compared else dry_run(self, lambda: self.update(group))
        trouble = self.agreed(self.compile_and_capture(parts, group))
        if trouble or compared:
            return trouble
        fast = dry_run(self, lambda: self.take(group))
        # After the capture, which keeps memory of its own: an epoch's last group needs both.
        dry_run(self, lambda: self.update(group))
        parts.refused = self.agreed(difference(self.criterion.terms, plain, fast))
        overflowed = self.agreed("" if all(map(math.isfinite, plain)) else "an overflow")
        parts.compared = not (parts.refused or overflowed)  # after an overflow the next trial compares them
        return parts.refused

    def compile_and_capture(self, parts: CompiledParts, group: MicroBatches) -> str:
        """Compile the step and capture it on a GPU; returns why that failed, or "".  No communication."""
        self.compiled = parts
        try:
            with restoring_state(self):
                if self.world.is_distributed:
                    self.compile_encoder(parts, group)
                elif self.device.type == "cuda":
                    self.recorded = record(self.update_unwrapped, group, self.optimizer)
                elif not parts.compared:
                    self.update_unwrapped(group)
        except Exception as error:  # a compiler may raise anything, and the plain step needs none
            text = error_and_root(error)
            if not is_out_of_memory(root_of(error)):
                parts.refused = text
            return text
        return ""

    def agreed(self, trouble: str) -> str:
        """Return this process's trouble, or that another process has some; a collective."""
        if not self.world.is_distributed:
            return trouble
        count = self.world.all_reduce(torch.tensor(float(bool(trouble)), device=self.device)).item()
        return trouble or ("another process of the trial cannot use it" if count else "")

    def take(self, group: MicroBatches) -> None:
        """Take a compiled step, which changes the weights once."""
        assert self.compiled is not None
        if self.world.is_distributed:
            self.network.predict = partial(predict_by, self.compiled.encode, self.unhooked)
            try:
                self.update(group)
            finally:
                self.network.predict = predict
        elif self.recorded is not None:
            self.recorded.replay(group)
        else:
            self.update_unwrapped(group)

    def update_unwrapped(self, group: MicroBatches) -> None:
        """Change the weights once, by the compiled model and loss and without Accelerate's wrappers.

        By hand: a CUDA graph keeps what the step does on the GPU only, and reading one number on the host ends its
        capture.  The prepared model and optimizer work on the host in every call (a patched `forward`, a patched
        `AdamW.step` from which they conclude whether the scaler skipped a step).
        """
        assert self.compiled is not None
        for images, labels in group:
            with self.keeping_finite_statistics():
                with self.accelerator.autocast():
                    logits, edge_logits = self.compiled.predict(self.unhooked, images)
                loss, terms = self.compiled.compute_loss(self.criterion, logits, labels, edge_logits)
                self.scaler.scale(loss / len(group)).backward()
            self.add_losses(torch.stack([loss.detach(), *terms.values()]), len(labels))
        self.scaler.unscale_(self.optimizer)
        self.set_grad_norm(clip_grad_norm_(self.model.parameters(), self.clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def compile_encoder(self, parts: CompiledParts, group: MicroBatches) -> None:
        """Compile the encoder forward and backward for this process's part of the batches.  No communication.

        An error in one process would otherwise leave the others waiting in the exchange of gradients.
        """
        weights = list(self.model.get_submodule("segformer").parameters())
        for images, labels in group:
            local, _ = local_batch(images, labels, self.world)
            with self.accelerator.autocast():
                maps = parts.encode(self.unhooked, local)
            torch.autograd.grad([tensor.float().sum() for tensor in maps], weights)


def error_and_root(error: BaseException) -> str:
    """Format an error and its root cause in one line; the error that ends a failed capture hides its cause."""
    texts = [one_line(e, with_type=True)[:250] for e in (error, root_of(error))]
    return " after ".join(dict.fromkeys(texts))


def root_of(error: BaseException) -> BaseException:
    """Return the first error of the chain that led to an error."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def wants_compiling(setting: str, device: torch.device) -> bool:
    """Return whether `train.compile` selects the compiled step; auto does on a GPU, if the training is long enough."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")
