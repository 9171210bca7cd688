"""Feature maps stay channels-last between the stages on a GPU, seen on fake CUDA tensors.

The forward pass runs on tensors without contents, whose operators have the strides that they have on a GPU.  The
backward pass and Inductor's own lowering cannot be run this way: autograd's engine needs a CUDA context, and Inductor
asks the driver for the properties of the card.  A test in test_compiled_step.py checks that Inductor gets the option
for channels-last convolutions.
"""

from collections.abc import Callable

import pytest
import torch
from thin_street import THIN_STREET
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fgseg.model.segformer import build_model
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
