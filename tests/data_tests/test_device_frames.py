"""Where frames are while a model trains, and how much of a GPU a process may take."""

import pytest
import torch
from random_frames import resident, some_frames

from fgseg.config.errors import ConfigError
from fgseg.data import FrameSet, load_splits
from fgseg.data.batches import train_batches
from fgseg.data.device_frames import DeviceFrames, HostFrames, load_to_device
from fgseg.devices import available_bytes, fits, is_out_of_memory, limit_gpu_memory, share_of_tensors, usable_bytes

CPU = torch.device("cpu")


def test_resident_frames_give_the_batches_of_mapped_ones(tiny):
    frames = some_frames()
    both = [
        list(train_batches(kind, tiny(augment__flip_prob=0.5), torch.Generator().manual_seed(3)))
        for kind in (HostFrames(frames, CPU), resident(frames))
    ]
    assert [len(labels) for _, labels in both[0]] == [2, 2, 1]
    for mapped, other in zip(*both, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mapped, other, strict=True))


def test_process_may_take_what_its_share_and_the_card_leave():
    info = {"total": 80, "reserved": 15}
    assert available_bytes(free=60, share=1.0, **info) == 60
    assert available_bytes(free=60, share=0.25, **info) == 5
    assert available_bytes(free=2, share=0.25, **info) == 2
    assert available_bytes(free=60, share=0.1, **info) == 0


def test_usable_memory_is_that_of_the_current_gpu_where_a_device_has_no_number(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def answer(value):
        def ask(device):
            asked.append(torch.cuda._utils._get_device_index(device))  # as torch reads it: a number is needed
            return value

        return ask

    answers = {
        "mem_get_info": (60, 80),
        "get_per_process_memory_fraction": 0.5,
        "memory_reserved": 15,
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer(value))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert usable_bytes(torch.device("cuda")) == usable_bytes(torch.device("cuda:1")) == 25
    assert asked == [3] * 3 + [1] * 3


@pytest.mark.parametrize(("fraction", "part"), [(1.0, 1.0), (2.0, 1.0), (0.25, 0.25 - 1 / 80), (0.02, 0.01)])
def test_share_of_tensors_leaves_room_for_what_cuda_needs(fraction: float, part: float):
    assert share_of_tensors(fraction, 80 * 2**30) == pytest.approx(part)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_every_name(error: Exception, memory: bool):
    assert is_out_of_memory(error) is memory


def test_frames_may_fill_half_of_what_is_usable():
    assert fits(5, 10) and not fits(6, 10)


def test_share_must_be_above_zero():
    with pytest.raises(ValueError, match="gpu share: got 0, must be above 0"):
        limit_gpu_memory(0)


@pytest.mark.parametrize(("usable", "kind"), [(10**9, DeviceFrames), (10**3, HostFrames)])
def test_auto_puts_frames_on_the_gpu_where_they_fit(monkeypatch: pytest.MonkeyPatch, usable: int, kind: type):
    monkeypatch.setattr("fgseg.data.device_frames.usable_bytes", lambda device: usable)
    monkeypatch.setattr("fgseg.data.device_frames.copy_to", lambda device, frames: resident(frames))
    monkeypatch.setattr("fgseg.data.device_frames._device_frames", {})
    splits = {"train": some_frames(), "val": some_frames()}
    assert {type(frames) for frames in load_to_device(splits, "auto", torch.device("cuda")).values()} == {kind}
    assert {type(frames) for frames in load_to_device(splits, "ram", torch.device("cuda")).values()} == {HostFrames}


def test_frames_of_the_last_trial_are_kept_and_others_are_dropped(monkeypatch: pytest.MonkeyPatch):
    copied, gpu = [], torch.device("cuda")
    monkeypatch.setattr("fgseg.data.device_frames.usable_bytes", lambda device: 10**9)
    monkeypatch.setattr(
        "fgseg.data.device_frames.copy_to", lambda device, frames: copied.append(frames) or resident(frames)
    )
    monkeypatch.setattr("fgseg.data.device_frames._device_frames", {})
    first = load_to_device({"train": some_frames()}, "auto", gpu)["train"]
    assert load_to_device({"train": some_frames()}, "auto", gpu)["train"] is first
    other = FrameSet(**vars(some_frames()) | {"fingerprint": "other"})
    load_to_device({"train": other}, "auto", gpu)
    load_to_device({"train": some_frames()}, "auto", gpu)
    assert len(copied) == 3


def test_frames_that_cannot_be_on_a_gpu_are_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"data\.device: got gpu, this machine has no GPU; use auto or ram"):
        load_to_device({"train": some_frames()}, "gpu", CPU)
    monkeypatch.setattr("fgseg.data.device_frames.usable_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"data\.device: got gpu, the frames take 0\.0 GiB"):
        load_to_device({"train": some_frames()}, "gpu", torch.device("cuda"))


@pytest.mark.gpu
def test_frames_on_a_gpu_are_those_of_the_host(tiny, gpu: torch.device):
    splits = load_splits(tiny().data, ("val",))
    index = torch.tensor([2, 0])
    resident = load_to_device(splits, "gpu", gpu)["val"]
    host = load_to_device(splits, "ram", gpu)["val"]
    assert isinstance(resident, DeviceFrames)
    for a, b in zip(resident.batch(index.cuda()), host.batch(index), strict=True):
        assert a.is_cuda and torch.equal(a, b)


@pytest.mark.gpu
def test_share_of_a_gpu_is_enforced(gpu: torch.device):
    total = torch.cuda.mem_get_info()[1]
    limit_gpu_memory(0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.2 * total), dtype=torch.uint8, device=gpu)
    finally:
        limit_gpu_memory(1.0)
