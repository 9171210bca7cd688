"""Where frames are while a model trains, and how much of a GPU a process may take."""

import numpy as np
import pytest
import torch
from random_frames import resident, some_frames

from fgseg.config.errors import ConfigError
from fgseg.data import FrameSet, load_splits
from fgseg.data.batches import train_batches
from fgseg.data.device_frames import COPIED_AT_ONCE, DeviceFrames, HostFrames, copy_to, load_to_device
from fgseg.devices import is_out_of_memory
from fgseg.gpu_memory import (
    GpuMemory,
    available_bytes,
    gpu_memory,
    limit_gpu_memory,
    reusable_bytes,
    share_of_tensors,
)
from fgseg.metrics.evaluator import batch_size

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


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    """The memory of a GPU on which frames can be kept without one; a test sets the available bytes."""

    class Memory(GpuMemory):
        available = 10**9

        def available_bytes(self) -> int:
            return self.available

    memory = Memory(0)
    monkeypatch.setattr("fgseg.data.device_frames.gpu_memory", lambda device: memory)
    monkeypatch.setattr("fgseg.metrics.evaluator.gpu_memory", lambda device: memory)
    return memory


def test_process_may_fill_what_its_share_and_the_card_leave():
    info = {"total": 80, "reserved": 15, "reusable": 0}
    assert available_bytes(free=60, share=1.0, **info) == 60
    assert available_bytes(free=60, share=0.25, **info) == 5
    assert available_bytes(free=2, share=0.25, **info) == 2
    assert available_bytes(free=60, share=0.1, **info) == 0
    assert available_bytes(free=2, share=0.25, **info | {"reusable": 4}) == 6
    assert available_bytes(free=60, share=0.1, **info | {"reusable": 8}) == 1


def test_memory_that_the_allocator_keeps_is_reusable_unless_a_tensor_or_a_captured_graph_is_in_it():
    def segment(size: int, active: int, pool: tuple[int, int]) -> dict[str, object]:
        return {"total_size": size, "active_size": active, "segment_pool_id": pool}

    assert reusable_bytes([segment(1, 0, (0, 0)), segment(2, 1, (0, 0)), segment(4, 0, (0, 1))]) == 1


def test_available_memory_is_that_of_the_current_gpu_where_a_device_has_no_number(monkeypatch: pytest.MonkeyPatch):
    answers = {"mem_get_info": (60, 80), "get_per_process_memory_fraction": 0.5, "memory_reserved": 15}
    asked = []
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda index, value=value: asked.append(index) or value)
    segments = [{"device": d, "total_size": d, "active_size": 0, "segment_pool_id": (0, 0)} for d in (1, 3)]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("to look at the memory must not free it"))
    assert [gpu_memory(torch.device(name)).available_bytes() for name in ("cuda", "cuda:1")] == [28, 26]
    assert asked == [3] * 3 + [1] * 3
    assert gpu_memory(torch.device("cuda")) is gpu_memory(torch.device("cuda:3"))


@pytest.mark.parametrize(("fraction", "part"), [(1.0, 1.0), (2.0, 1.0), (0.25, 0.25 - 1 / 80), (0.02, 0.01)])
def test_share_of_tensors_leaves_room_for_what_cuda_needs(fraction: float, part: float):
    assert share_of_tensors(fraction, 80 * 2**30) == pytest.approx(part)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_every_name(error: Exception, memory: bool):
    assert is_out_of_memory(error) is memory


def test_frames_may_fill_half_of_what_is_available(memory: GpuMemory):
    memory.available = 10
    assert memory.keep_frames({"train": 5}, str) is None and memory.frames == {"train": "train"}
    assert memory.keep_frames({"train": 5, "val": 5}, str) is None  # the first ones are on the GPU already
    assert memory.keep_frames({"test": 6}, str) == 10 and memory.frames == {}


def test_evaluation_batch_fits_into_the_available_memory(memory: GpuMemory):
    assert batch_size((64, 128), torch.device("cuda")) == 10**9 // 2**10 // (64 * 128)
    memory.available = 10**12
    assert batch_size((512, 1024), torch.device("cuda")) == 16
    memory.available = 0
    assert batch_size((512, 1024), torch.device("cuda")) == 1


def test_share_must_be_above_zero():
    with pytest.raises(ValueError, match="gpu share: got 0, must be above 0"):
        limit_gpu_memory(0)


@pytest.mark.parametrize(("available", "kind"), [(10**9, DeviceFrames), (10**3, HostFrames)])
def test_auto_puts_frames_on_the_gpu_where_they_fit(memory: GpuMemory, monkeypatch, available: int, kind: type):
    memory.available = available
    monkeypatch.setattr("fgseg.data.device_frames.copy_to", lambda device, frames: resident(frames))
    splits = {"train": some_frames(), "val": some_frames()}
    assert {type(frames) for frames in load_to_device(splits, "auto", torch.device("cuda")).values()} == {kind}
    assert {type(frames) for frames in load_to_device(splits, "ram", torch.device("cuda")).values()} == {HostFrames}


def test_frames_of_the_last_trial_are_kept_and_others_are_dropped(memory: GpuMemory, monkeypatch: pytest.MonkeyPatch):
    copied, gpu = [], torch.device("cuda")
    monkeypatch.setattr(
        "fgseg.data.device_frames.copy_to", lambda device, frames: copied.append(frames) or resident(frames)
    )
    first = load_to_device({"train": some_frames()}, "auto", gpu)["train"]
    assert load_to_device({"train": some_frames()}, "auto", gpu)["train"] is first
    other = FrameSet(**vars(some_frames()) | {"fingerprint": "other"})
    load_to_device({"train": other}, "auto", gpu)
    load_to_device({"train": some_frames()}, "auto", gpu)
    assert len(copied) == 3


def test_frames_are_copied_through_one_buffer_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    frames = some_frames(components=True)
    copies: list[tuple[int, int]] = []
    copy_of_array = np.copyto

    def copyto(into: np.ndarray, part: np.ndarray) -> None:
        copies.append((into.ctypes.data, len(part)))
        copy_of_array(into, part)

    monkeypatch.setattr("fgseg.data.device_frames.COPIED_AT_ONCE", 2)
    monkeypatch.setattr(np, "copyto", copyto)
    copied = copy_to(CPU, frames)
    assert [count for _, count in copies] == [2, 2, 1] * 3  # five frames: images, labels, ids
    assert len({address for address, _ in copies}) == 1
    for tensor, array in ((copied.images, frames.images), (copied.labels, frames.labels), (copied.ids, None)):
        assert tensor.numpy().tobytes() == (frames.components.ids if array is None else array).tobytes()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_buffer_for_a_gpu_is_pinned_and_has_room_for_a_few_images(device: str, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[tuple[int, ...], object]] = []
    empty = torch.empty

    def on_the_cpu(*size: int, dtype: torch.dtype, device: object = None, pin_memory: bool = False) -> torch.Tensor:
        if device is None:
            made.append((size, pin_memory))
        return empty(*size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_the_cpu)
    copy_to(torch.device(device), some_frames())
    assert made == [((COPIED_AT_ONCE * 64 * 128 * 3,), device == "cuda")]


def test_frames_that_cannot_be_on_a_gpu_are_told(memory: GpuMemory):
    with pytest.raises(ConfigError, match=r"data\.device: got gpu, this machine has no GPU; use auto or ram"):
        load_to_device({"train": some_frames()}, "gpu", CPU)
    memory.available = 1000
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
def test_available_memory_does_not_shrink_by_what_the_allocator_can_use_again(gpu: torch.device):
    memory = gpu_memory(gpu)
    before = memory.available_bytes()
    held = torch.empty(2**28, dtype=torch.uint8, device=gpu)
    during = memory.available_bytes()
    del held
    kept = torch.cuda.memory_reserved()
    after = memory.available_bytes()
    assert during <= before - 2**28 and after >= during + 2**28  # the CPU twin: reusable memory of a snapshot
    assert torch.cuda.memory_reserved() == kept


@pytest.mark.gpu
def test_share_of_a_gpu_is_enforced(gpu: torch.device):
    total = torch.cuda.mem_get_info()[1]
    limit_gpu_memory(0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.2 * total), dtype=torch.uint8, device=gpu)
    finally:
        limit_gpu_memory(1.0)
