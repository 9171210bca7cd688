"""One optimizer step; and the same compiled and, on a GPU, recorded as one CUDA graph."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fgseg.batches import normalise
from fgseg.losses import HybridLoss

log = logging.getLogger(__name__)

BACKEND = "inductor"
"""What torch.compile turns its graphs into."""
WARM_UP = 3
"""Steps before a CUDA graph is recorded: they compile, and make what a recording must find there (AdamW's moments)."""

Group = Sequence[tuple[Tensor, Tensor]]
"""The batches of one optimizer step: images (B, 3, H, W) uint8 and labels (B, H, W) uint8 each."""


class Step:
    """Forward, backward, clipping, AdamW and schedule.  Nothing in it waits for the device.

    Attributes:
        sums: (1 + terms,) float32, the loss and its unweighted terms times images, summed until they are zeroed.
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
        self.device = accelerator.device
        self.scaler = accelerator.scaler or GradScaler(self.device.type, enabled=False)
        self.sums = torch.zeros(1 + len(criterion.weights), device=self.device)

    def __call__(self, group: Group) -> None:
        """Train on the batches of one step."""
        self.update(group, self.predict, self.criterion)
        # Also where the scaler skips its step: whether it does, only the device knows (see `take_back_skipped`).
        self.schedule.step()

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, 7, H/4, W/4) for images (B, 3, H, W) uint8."""
        logits: Tensor = self.model(pixel_values=normalise(images)).logits
        return logits

    def update(self, group: Group, predict: Callable[..., Tensor], criterion: Callable[..., tuple]) -> None:
        """Change the weights; `predict` and `criterion` compute what the methods of that name do."""
        for images, labels in group:
            with self.accelerator.autocast():
                logits = predict(images)
            loss, terms = criterion(logits, labels)
            self.scaler.scale(loss / len(group)).backward()
            self.sums += torch.stack([loss.detach(), *terms.values()]) * len(labels)
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def take_back_skipped(self) -> None:
        """Set the schedule to the steps that AdamW took; those which the scaler skipped do not count, as in the source.

        This waits for the device: once an epoch.
        """
        counts = [state["step"] for state in self.optimizer.state.values()]
        taken = int(torch.stack(counts).max()) if self.scaler.is_enabled() and counts else self.schedule.last_epoch
        if taken != self.schedule.last_epoch:
            self.schedule.last_epoch = taken - 1
            self.schedule.step()


class CompiledStep(Step):
    """The same step through torch.compile; on a GPU, all of it but the schedule is one CUDA graph.

    Model and loss are compiled apart, since only the loss changes with the weights that a search tries.  A group of
    another shape than the first one (the epoch's last) goes the plain way instead of being compiled as well.
    """

    def __init__(self, *parts: object, cache: Path):
        """Prepare the step; nothing is compiled before the first group.

        Args:
            parts: those of `Step`.
            cache: folder of compiled code, shared by every process on the machine.
        """
        super().__init__(*parts)  # type: ignore[arg-type]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        torch.compiler.reset()  # what an earlier trial compiled counts against a limit, and is found on disk anyway
        self.fast = [torch.compile(part, backend=BACKEND, dynamic=False) for part in (self.predict, self.criterion)]
        self.shapes: list[torch.Size] | None = None
        self.calls, self.seconds = 0, 0.0
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def predict(self, images: Tensor) -> Tensor:
        """See `Step.predict`; without the hooks by which Transformers collects the stages: they end a graph."""
        maps = [normalise(images)]
        for stage in self.model.get_submodule("segformer.stages").children():
            maps.append(stage(maps[-1]))
        logits: Tensor = self.model.get_submodule("decode_head")(maps[1:])
        return logits

    def __call__(self, group: Group) -> None:
        """Train on the batches of one step."""
        shapes = [labels.shape for _, labels in group]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return super().__call__(group)
        if self.graph is None:
            self.prepare(group)
        else:
            self.replay(group)
        self.schedule.step()

    def prepare(self, group: Group) -> None:
        """Take a step the compiled way; after the warm-up on a GPU, by recording it first."""
        started = time.perf_counter()
        if self.stream is None:
            self.update(group, *self.fast)
        elif self.calls < WARM_UP:
            # What autograd keeps of a stream must be that of the recording.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.update(group, *self.fast)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            self.record(group)
            self.replay(group)
        self.calls += 1
        self.seconds += time.perf_counter() - started
        if self.calls == (1 if self.stream is None else WARM_UP + 1):
            log.info("the first %d steps took %.1f s, compilation included", self.calls, self.seconds)

    def record(self, group: Group) -> None:
        """Record the step as a CUDA graph over copies of the batches; nothing is computed."""
        self.inputs = [(images.clone(), labels.clone()) for images, labels in group]
        self.graph = torch.cuda.CUDAGraph()
        # AdamW refuses to be recorded without this, and warns of it outside a recording.
        self.allow_recording(True)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.update(self.inputs, *self.fast)
        self.allow_recording(False)

    def allow_recording(self, allowed: bool) -> None:
        """Set what AdamW calls capturable; its fused form keeps all its state on the GPU in either case."""
        for settings in self.optimizer.param_groups:
            settings["capturable"] = allowed

    def replay(self, group: Group) -> None:
        """Copy the batches to where the graph reads them, and run it."""
        assert self.graph is not None
        for kept, given in zip(self.inputs, group, strict=True):
            for into, batch in zip(kept, given, strict=True):
                into.copy_(batch)
        self.graph.replay()


def wants_compiling(setting: str) -> bool:
    """What `train.compile` means: auto compiles nothing as long as the compiled step has not been measured on a GPU."""
    return setting == "on"
