"""The load of a node during an epoch, with made-up GPUs."""

import threading

import pytest
import torch

from fgseg import node_load
from fgseg.node_load import gpus_of, mean_of, measured_load

READINGS = {"utilization_percentage": lambda gpu: 50 + gpu, "power_usage_watts": lambda gpu: 1 / 0}


def test_samples_of_a_training_name_its_gpus_from_0_and_leave_out_what_a_gpu_does_not_support(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(node_load, "GPU_READINGS", READINGS)
    with measured_load((2, 5)) as load:
        assert load == {}
    own = {"cpu_utilization_percentage", "system_memory_usage_megabytes"}
    assert {name: value for name, value in load.items() if name not in own} == {
        "gpu_0_utilization_percentage": 52,
        "gpu_1_utilization_percentage": 55,
    }
    assert load.keys() > own
    assert load["system_memory_usage_megabytes"] > 10


def test_means_are_over_all_samples_of_a_longer_epoch(monkeypatch: pytest.MonkeyPatch):
    values, enough = iter(range(10, 1000, 10)), threading.Event()

    def read(gpu: int) -> int:
        value = next(values)
        if value == 30:
            enough.set()
        return value

    monkeypatch.setattr(node_load, "GPU_READINGS", {"utilization_percentage": read})
    monkeypatch.setattr(node_load, "SAMPLE_S", 0.001)
    with measured_load((0,)) as load:
        assert enough.wait(60)
    assert load["gpu_0_utilization_percentage"] >= 15


def test_process_that_does_not_measure_starts_no_thread():
    before = threading.active_count()
    with measured_load((), active=False) as load:
        assert threading.active_count() == before
    assert load == {}


def test_mean_of_a_reading_is_over_the_samples_that_have_it():
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 2.26}]) == {"a": 1.6, "b": 2.0}


def test_cpu_training_has_no_gpus():
    assert gpus_of(torch.device("cpu"), 2) == ()


def test_several_processes_use_every_visible_gpu_and_one_uses_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert list(gpus_of(torch.device("cuda"), 2)) == [0, 1, 2, 3]
    assert list(gpus_of(torch.device("cuda"), 1)) == [3]
