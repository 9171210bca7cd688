"""Feature maps stay channels-last between the stages on a GPU, and Inductor lowers model and losses for one.

The forward pass runs on fake CUDA tensors, without contents, whose operators have the strides that they have on a GPU.
Its backward pass cannot run on them, since autograd's engine needs a CUDA context: the graphs of both passes are traced
on the CPU, and lowered with fake CUDA tensors as their inputs (see gpu_lowering.py).  Losses are lowered without their
backward pass, whose operators on a GPU are not those of the CPU.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_data import run_python
from thin_street import THIN_STREET
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fgseg.model.segformer import build_model
from fgseg.training.compiled_parts import MODEL_OPTIONS
from fgseg.training.network import Network, predict, predict_traceable

pytestmark = pytest.mark.slow


class Layouts(TorchDispatchMode):
    """Collects whether the input of each convolution is channels-last, and the shapes that are copied to NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_last: list[bool] = []
        self.copied: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.channels_last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        if func is torch.ops.aten.clone.default:
            self.copied.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def layouts(forward: Callable) -> Layouts:
    """The layouts in the forward pass of a model for two frames of 64x128 on a GPU."""
    network = Network(build_model("small", THIN_STREET))
    network.predict = forward
    with FakeTensorMode():
        real = [*network.named_parameters(), *network.named_buffers()]
        state = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for name, tensor in real}
        images = torch.empty(2, 3, 64, 128, dtype=torch.uint8, device="cuda")
        with Layouts() as found:
            logits: Tensor = torch.func.functional_call(network, state, (images,)).logits
    assert (logits.device.type, logits.shape) == ("cuda", (2, 7, 16, 32))
    return found


def test_maps_stay_channels_last_between_the_stages():
    maps = {(2, 16, 16, 32), (2, 32, 8, 16), (2, 64, 4, 8), (2, 128, 2, 4)}
    found = layouts(predict_traceable)
    assert found.channels_last == [False] + [True] * (len(found.channels_last) - 1)  # the first reads the image
    assert maps.isdisjoint(found.copied)
    of_transformers = layouts(predict)
    assert of_transformers.channels_last.count(False) == 4 and maps <= set(of_transformers.copied)


def test_traceable_form_computes_what_transformers_does():
    network = Network(build_model("small", THIN_STREET)).eval()
    images = torch.randint(256, (2, 3, 64, 128), dtype=torch.uint8)
    expected = network(images).logits
    network.predict = predict_traceable
    torch.testing.assert_close(network(images).logits, expected)


def lowered(expression: str, cache: Path) -> object:
    """The value of an expression of gpu_lowering.py, in a process of its own with a cache of its own."""
    pytest.importorskip("triton")
    project = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (project, project / "tests" / "support")))
    code = f"import json, gpu_lowering; print(json.dumps(gpu_lowering.{expression}))"
    shown = run_python(code, PYTHONPATH=path, TORCHINDUCTOR_CACHE_DIR=str(cache), TRITON_CACHE_DIR=str(cache))
    return json.loads(shown.splitlines()[-1])


def test_convolutions_are_lowered_channels_last_forward_and_backward(tmp_path: Path):
    """The last gradient is that of the first weights; torch 2.11 keeps its input, the pictures, in NCHW."""
    forward, backward = lowered(f"channels_last_convolutions({MODEL_OPTIONS})", tmp_path)
    assert forward == [True] * 11
    assert backward == [True] * 10 + [not torch.__version__.startswith("2.11.")]


def test_both_losses_are_lowered_for_a_gpu(tmp_path: Path):
    assert lowered("lower_losses()", tmp_path) > 10
