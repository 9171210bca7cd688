"""Compiled model and loss, cached by this process for its later trials."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fgseg.losses import HybridLoss
from fgseg.model.edge_head import Prediction, SegformerWithEdges
from fgseg.training.network import decode, encode, predict_traceable
from fgseg.training.step import MicroBatches, Step

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
InductorOptions = dict[str, str | int | bool | Callable[..., Any]]

BACKEND = "inductor"
"""Backend of torch.compile."""
MODEL_OPTIONS: InductorOptions = {
    # Channels-last convolutions in every graph. Without it torch 2.14 runs the backward pass of the depthwise
    # convolutions in NCHW, torch 2.11 does not.
    "force_layout_optimization": True,
    # Dropout and drop path draw the numbers that the plain step draws from the same random state, so that the two can
    # be compared closely. Inductor's own random numbers would be fused into other kernels.
    "fallback_random": True,
}
"""Options of Inductor for the model; the loss has neither convolutions over channels nor random numbers.  With
`combo_kernels` a step of two frames took 6.9 ms instead of 5.0 ms on an H200."""
MAX_ENTRIES = 8
"""Entries of the cache; at the next one all are dropped.  torch.compile (2.11 to 2.14) keeps as many graphs of one
function (`torch._dynamo.config.recompile_limit`), and refuses further ones."""
COMPILE_S = 65.0
"""Seconds that the first compilation of a step may take on a GPU.  This and the two below were measured on an H200 with
torch 2.11 and 16 cores, SegFormer-B0, bas_cp, 512x1024, a batch of 2."""
CAPTURE_S = 1.0
"""Seconds for the CUDA graph of a step whose parts are compiled already."""
SAVED_S = 0.057
"""Seconds that compiled code saves per step: the plain step takes 62.6 ms, the compiled one 5.3 ms.  With several
processes, where only the encoder is compiled, it is less; how much was not measured."""


@dataclass(frozen=True)
class PartsKey:
    """Everything that the compiled code of a step depends on; weights, seed and learning rate do not belong to it.

    Attributes:
        architecture: the `config.json` of the SegFormer, which includes drop path and dropout.
        edges: whether the model has an edge head.
        shapes: of the labels of each batch of a step.
        precision: "no", "fp16" or "bf16".
        terms: names of the terms of the loss.
        options: whether there are class weights and hard pixels, and the setting `loss.soft_iou_over`.
        device: type of the device.
        world_size: number of processes.
    """

    architecture: str
    edges: bool
    shapes: tuple[tuple[int, ...], ...]
    precision: str
    terms: tuple[str, ...]
    options: tuple[bool, bool, str]
    device: str
    world_size: int


class CompiledParts:
    """Compiled functions of a step.

    They take model and loss as arguments, so that they serve every trial of their key and keep no trial's memory.

    Attributes:
        predict: computes a Prediction from a model and images.
        compute_loss: computes the loss and its terms from a HybridLoss, logits, labels and edge logits.
        encode: computes the maps of the encoder's stages from a model and images.  Several processes use this alone:
            the loss and synchronised batch norm in the decode head communicate, which cannot be traced as one graph.
        compared: whether a step was equal to the plain one.
        refused: why they must not be used; "" if nothing is known against them.
    """

    def __init__(self) -> None:
        """Create the functions; each is compiled when it is first called."""
        self.predict = compile_part(predict_traceable, MODEL_OPTIONS)
        self.compute_loss = compile_part(compute_loss)
        self.encode = compile_part(encode, MODEL_OPTIONS)
        self.compared, self.refused = False, ""


class PartsCache:
    """Compiled parts by key, and the steps that were taken without compiling; used from one thread.

    Attributes:
        parts: at most MAX_ENTRIES entries.
        plain_steps: steps by key of the trials that did not compile.
    """

    def __init__(self) -> None:
        self.parts: dict[PartsKey, CompiledParts] = {}
        self.plain_steps: Counter[PartsKey] = Counter()

    def get(self, key: PartsKey) -> CompiledParts:
        """Return the parts of a key, created if there are none."""
        if key not in self.parts:
            if len(self.parts) >= MAX_ENTRIES:
                self.clear()
            self.parts[key] = CompiledParts()
        return self.parts[key]

    def clear(self) -> None:
        """Drop all compiled code of this process; the files of Inductor's cache on the disk remain."""
        self.parts.clear()
        torch.compiler.reset()

    def justifies_compiling(self, key: PartsKey, steps: int) -> bool:
        """Return whether compiling pays off in a trial, and count the trial's steps as plain ones if it does not.

        Compiling pays off if it takes less time than it saves in the remaining steps of this trial and in as many steps
        as earlier trials of this process took uncompiled: it is likely that trials of the same kind follow.  So the
        time lost in a process is at most that of one compilation.  Processes that train one trial together end with it,
        so that only its own steps count there.  Their step is partly eager, since only the encoder is compiled; it is
        judged by the constants of a single GPU, as its own times were not measured.

        Args:
            key: of the trial's step.
            steps: remaining optimizer steps of the trial.
        """
        known = key in self.parts and self.parts[key].compared
        needed = (CAPTURE_S if known else COMPILE_S) / SAVED_S
        if steps + self.plain_steps[key] >= needed:
            return True
        self.plain_steps[key] += steps
        return False


CACHE = PartsCache()
"""The cache of this process: a worker trains one trial after the other."""


def key_of(step: Step, group: MicroBatches) -> PartsKey:
    """Return the key of a step's compiled parts for batches of these shapes."""
    criterion = step.criterion
    return PartsKey(
        architecture=step.model.get_submodule("segformer").config.to_json_string(use_diff=False),  # type: ignore[operator, union-attr]
        edges=isinstance(step.model, SegformerWithEdges),
        shapes=tuple(tuple(labels.shape) for _, labels in group),
        precision=step.accelerator.mixed_precision,
        terms=criterion.terms,
        options=(criterion.class_weights is not None, criterion.hard_pixels is not None, criterion.soft_iou_over),
        device=step.device.type,
        world_size=step.world.world_size,
    )


def compile_part(
    part: Callable[Arguments, Result], options: InductorOptions | None = None
) -> Callable[Arguments, Result]:
    """Return a function that torch.compile compiles when it is first called.

    Where the installed torch or Transformers splits the graph, the function is slower and computes the same.
    """
    return torch.compile(part, backend=BACKEND, dynamic=False, options=options if BACKEND == "inductor" else None)


def compute_loss(
    criterion: HybridLoss, logits: Tensor, labels: Tensor, edge_logits: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch and its unweighted terms, each () float32."""
    return criterion(logits, labels, None, edge_logits)


def predict_by(
    encoder: Callable[[nn.Module, Tensor], Sequence[Tensor]], unhooked: nn.Module, model: nn.Module, images: Tensor
) -> Prediction:
    """Compute the logits of images (B, 3, H, W) uint8 by a compiled encoder and the decode head of the model."""
    return decode(model, encoder(unhooked, images))
