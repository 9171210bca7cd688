"""Inductor's lowering for a GPU on a machine without one: fake CUDA tensors, and the properties of an H100.

It uses what Inductor has inside (torch 2.11 to 2.14): there is no public way to lower a graph without compiling it.
torch remembers what it found, so that a process that pretended to have a GPU must do nothing else; see `run_python`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from functorch.compile import make_boxed_func
from thin_street import THIN_STREET
from torch import Tensor
from torch._decomp import get_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config, ir
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.backends.compiler import GPUTarget

from fgseg.losses import HybridLoss
from fgseg.model.segformer import build_model
from fgseg.training.network import predict_traceable
from scripts.bench.jobs import FAMILIES

H100 = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    total_memory=80 * 2**30,
    regs_per_multiprocessor=65536,
    warp_size=32,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)
DRIVER = SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_current_device=lambda: 0,
    get_device_interface=lambda: torch.cuda,
)
"""As Triton's driver, without CUDA."""
BILINEAR = torch.ops.aten.upsample_bilinear2d
"""`torch.compile` decomposes it before Inductor, whose own table lacks it."""


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let torch and Triton find an H100."""
    answers: dict[str, object] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "_get_device_properties": H100,
        "_lazy_init": None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch(f"torch.cuda.{name}", lambda *given, answer=answer: answer, create=True))
        stack.enter_context(patch.object(CudaInterface.Worker, "get_device_properties", lambda *given: H100))
        stack.enter_context(patch.object(CudaInterface.Worker, "current_device", lambda: 0))
        stack.enter_context(patch.object(triton.runtime.driver, "_active", DRIVER))
        stack.enter_context(patch("torch._inductor.scheduler.has_triton", lambda: True))
        yield


def lower(function: Callable[..., Any], tensors: Sequence[Tensor], options: dict[str, Any]) -> list[ir.Operation]:
    """Lower a function of tensors, as if they were on a GPU, and generate its code; returns Inductor's operations.

    Args:
        function: without an autograd graph, for which CUDA is needed.
        tensors: of any device; only their shapes, strides and types are used.
        options: of Inductor.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        given = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors]
        graph = make_fx(function, decomposition_table=select_decomp_table() | get_decompositions([BILINEAR]))(*given)
    with pretended_gpu(), config.patch(compile_threads=1, **options), V.set_fake_mode(mode):
        lowering = GraphLowering(graph, example_inputs=given, shape_env=mode.shape_env)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*given)
            lowering.codegen()
    return lowering.operations


def lower_losses() -> int:
    """Lower the losses of bas and slc for two frames of 512x1024; returns the number of operations."""
    logits, labels = torch.empty(2, 7, 128, 256), torch.empty(2, 512, 1024, dtype=torch.uint8)
    count = 0
    for weights, class_weights, _ in FAMILIES.values():
        criterion = HybridLoss(weights, class_weights)
        buffers = dict(criterion.named_buffers())

        def compute(logits: Tensor, labels: Tensor, *given: Tensor, criterion=criterion, names=tuple(buffers)):
            loss, terms = functional_call(criterion, dict(zip(names, given, strict=True)), (logits, labels))
            return loss, *terms.values()

        count += len(lower(compute, [logits, labels, *buffers.values()], {}))
    return count


def channels_last_convolutions(options: dict[str, Any]) -> list[list[bool]]:
    """Lower the model's forward and backward pass with options of Inductor, for two frames of 64x128.

    Returns:
        For each of the two graphs and each convolution: whether its input, and the gradient of its output, are
        channels-last.
    """
    graphs: list[tuple[torch.fx.GraphModule, Sequence[Tensor]]] = []

    def keep(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        graphs.append((graph, inputs))
        return make_boxed_func(graph.forward)

    model = build_model("small", THIN_STREET).eval()  # dropout of the CPU cannot be traced
    compiled = torch.compile(predict_traceable, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), dynamic=False)
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's own kernel of attention does not exist on a GPU
        compiled(model, torch.zeros(2, 3, 64, 128, dtype=torch.uint8)).logits.sum().backward()
    return [channels_last(lower(on_gpu(graph), inputs, options)) for graph, inputs in graphs]


def on_gpu(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Let a graph create its tensors on the GPU."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = node.kwargs | {"device": torch.device("cuda")}
    graph.recompile()
    return graph


def channels_last(operations: Sequence[ir.Operation]) -> list[bool]:
    """Return for each convolution whether its input, and the gradient of its output, are channels-last."""
    maps = {torch.ops.aten.convolution.default: 1, torch.ops.aten.convolution_backward.default: 2}
    return [
        all(tensor.get_stride()[1] == 1 for tensor in operation.inputs[: maps[operation.op_overload]])
        for operation in operations
        if getattr(operation, "op_overload", None) in maps
    ]
