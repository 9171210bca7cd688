"""Several processes train one model as one process would."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import two_processes
from accelerate import Accelerator
from random_frames import some_frames
from thin_street import THIN_STREET
from torch.nn import SyncBatchNorm

from fgseg.checkpoints.checkpoint import Checkpoint, newest_checkpoint
from fgseg.checkpoints.manifest import list_manifests
from fgseg.config.errors import ConfigError
from fgseg.config.loading import check_processes
from fgseg.data.device_frames import HostFrames
from fgseg.distributed import (
    SINGLE_PROCESS,
    World,
    check_gpus,
    current_world,
    forget_state_of_accelerate_1,
    joined_world,
    local_batch,
)
from fgseg.labels import VOID
from fgseg.metrics.evaluator import evaluate
from fgseg.model.segformer import build_model
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from fgseg.train import is_main_process, launched_processes
from fgseg.train import main as train_command
from fgseg.training.loop import train
from fgseg.training.trainer import build_accelerator
from search.audit.trials import audit
from search.ledger.ledger import Ledger
from search.ledger.records import State

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAMILIES = (
    "all", "baseline", "bas", "bas_cp", "bas_ctx", "bas_edge", "rare", "slc", "compiled", *two_processes.VARIANTS,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, cache: str) -> Path:
    """What two processes leave (see `two_processes.main`), with a training that one process began."""
    location = tmp_path_factory.mktemp("processes")
    train(two_processes.training(1, cache), location / "begun-by-one")
    script = str(Path(two_processes.__file__))
    started = two_processes.start([sys.executable, script, str(location), cache], os.environ | environment)
    outputs = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    (location / "output").write_text(outputs[0])
    assert outputs[1] == ""
    return location


@pytest.fixture(scope="module")
def steps(folder: Path, cache: str) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Gradients and sums of one step by family: those of one process, and those of two."""
    alone, both = two_processes.take_steps(cache), torch.load(folder / "steps.pt")
    alone["compiled"] = alone["bas"]
    return {family: (alone[family], both[family]) for family in alone}


def test_every_family_is_compared(steps):
    assert sorted(steps) == sorted(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_two_processes_are_those_of_one(steps, family: str):
    alone, both = ({name: g for name, g in side.items() if name != "sums"} for side in steps[family])
    assert alone.keys() == both.keys()
    whole = torch.cat([gradient.flatten() for gradient in alone.values()])
    assert whole.norm() > 0.01
    # The project's promise is 1e-5; float32 sums in another order leave 2e-7 of the norm, and 1e-8 of a weight.
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], gradient, rtol=0, atol=1e-5 * float(whole.norm()))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_terms_of_two_processes_are_those_of_one(steps, family: str):
    alone, both = (side["sums"] for side in steps[family])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=0)  # float32 sums in two orders


def test_command_of_several_processes_prints_a_line_per_epoch_and_no_more(folder: Path):
    lines = (folder / "output").read_text().splitlines()
    assert [line[:15] for line in lines] == ["epoch 1/1  mIoU", "1 epochs done; "], lines


def test_processes_draw_the_same_whole_batches_with_every_augmentation(folder: Path, cache: str):
    alone = two_processes.augmented_batches(cache, 0)
    assert [tuple(tensor.shape) for tensor in alone[1::2]] == [(2, 32, 64), (2, 32, 64), (1, 32, 64)]
    for rank in range(2):
        both = torch.load(folder / f"batches-{rank}.pt")
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


def test_processes_evaluate_every_frame_in_windows_of_the_crop(folder: Path):
    (epoch,) = state_of(folder / "augmented").manifest.history
    assert sum(map(sum, epoch.confusion)) == 3 * 64 * 128


def state_of(folder: Path) -> Checkpoint:
    found = newest_checkpoint(LocalStore(folder))
    assert found is not None
    return found


def shapes(value: object) -> object:
    """The structure of a state, its numbers left out."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return {key: shapes(inner) for key, inner in value.items()}
    return [shapes(inner) for inner in value] if isinstance(value, list) else type(value)


def test_training_begun_by_one_process_is_continued_by_two(folder: Path):
    history = state_of(folder / "begun-by-one").manifest.history
    assert [(e.epoch, e.attempt) for e in history] == [(1, 1), (2, 2)]
    assert history[1].loss < history[0].loss
    assert sum(map(sum, history[1].confusion)) == 3 * 64 * 128


def test_training_begun_by_two_processes_is_continued_by_one(folder: Path, cache: str):
    begun, seen = state_of(folder / "begun-by-two"), list[EpochResult]()
    history = train(two_processes.training(2, cache), folder / "begun-by-two", seen.append)
    assert [history[0]] == begun.manifest.history
    assert [(e.epoch, e.attempt) for e in seen] == [(2, 2)]
    assert seen[0].loss < history[0].loss


def test_checkpoints_of_one_process_and_of_two_are_alike(folder: Path, tmp_path: Path, cache: str):
    train(two_processes.training(2, cache), tmp_path)
    one, two = state_of(tmp_path), state_of(folder / "begun-by-one")
    assert shapes(one.model) == shapes(two.model)
    assert shapes(one.state) == shapes(two.state)


def test_recipe_of_two_processes_is_continued_by_one(folder: Path, tmp_path: Path, cache: str):
    run = two_processes.training(2, cache, two_processes.RECIPE)
    begun, seen = state_of(folder / "recipe"), list[EpochResult]()
    train(run, folder / "recipe", seen.append)
    assert [(e.epoch, e.attempt) for e in seen] == [(2, 2)]
    assert seen[0].loss < begun.manifest.history[0].loss and "edge" in seen[0].terms
    train(run, tmp_path)
    one, two = state_of(tmp_path), state_of(folder / "recipe")
    assert {"weights", "edge_head"} < one.state.keys()
    assert (shapes(one.model), shapes(one.state)) == (shapes(two.model), shapes(two.state))
    statistics = "decode_head.batch_norm.running_mean"
    assert torch.equal(begun.model[statistics], begun.state["weights"][statistics])


def test_frames_of_a_batch_are_cut_in_order_and_the_last_parts_filled_with_void():
    images = torch.arange(5).to(torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    labels = torch.ones(5, 2, 2, dtype=torch.uint8)
    parts = [local_batch(images, labels, World(rank, 4)) for rank in range(4)]
    assert [part[:, 0, 0, 0].tolist() for part, _ in parts] == [[0, 1], [2, 3], [4, 4], [4, 4]]
    assert [part[:, 0, 0].tolist() for _, part in parts] == [[1, 1], [1, 1], [1, VOID], [VOID, VOID]]
    assert local_batch(images, labels, SINGLE_PROCESS) == (images, labels)


def test_processes_judge_every_frame_once():
    model, frames = build_model("small", THIN_STREET), HostFrames(some_frames(), torch.device("cpu"))
    size = len(frames) - 1
    parts = [evaluate(model, frames, World(rank, size)).sum(0) for rank in range(size)]
    assert torch.equal(torch.stack(parts).sum(0), evaluate(model, frames).sum(0))
    parts = [evaluate(model, frames, World(rank, size), (32, 64)).sum(0) for rank in range(size)]
    assert torch.equal(torch.stack(parts).sum(0), evaluate(model, frames, window=(32, 64)).sum(0))


def test_batch_norm_over_several_gpus_keeps_the_names_of_all_weights():
    model = build_model("small", THIN_STREET)
    names = list(model.state_dict())
    assert list(SyncBatchNorm.convert_sync_batchnorm(model).state_dict()) == names


def test_batch_that_does_not_divide_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 3, must be a multiple of 2, as each of 2 processes"):
        check_processes(tiny(train__batch_size=3), 2)
    check_processes(tiny(train__batch_size=3), 1)


LAUNCHERS = {
    "accelerate": ["accelerate.commands.accelerate_cli", "launch", "--config_file", "configs/accelerate.yaml"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher_trains_and_resumes_in_two_processes(
    launcher: str, environment: dict[str, str], tmp_path: Path, cache: str
):
    def launch() -> tuple[list[str], list[EpochResult]]:
        """The command's output, the beginning of each line, and the epochs of its checkpoint."""
        command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "fgseg.train"]
        command += two_processes.command(tmp_path / "both", cache, "train.epochs=2")
        one_thread = os.environ | environment | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return [line[:9] for line in done.stdout.splitlines()], state_of(tmp_path / "both").manifest.history

    lines, trained = launch()
    assert lines == ["epoch 1/2", "epoch 2/2", "2 epochs "]
    store = LocalStore(tmp_path / "both")
    store.delete(list_manifests(store)[0].name)  # as if the second epoch had been interrupted
    lines, resumed = launch()
    assert lines == ["epoch 2/2", "2 epochs "]
    assert [(e.epoch, e.attempt) for e in resumed] == [(1, 1), (2, 2)]
    assert [(e.loss, e.terms, e.confusion) for e in resumed] == [(e.loss, e.terms, e.confusion) for e in trained]

    assert train_command(two_processes.command(tmp_path / "one", cache, "train.epochs=2")) == 0
    alone = state_of(tmp_path / "one").manifest.history
    # Each process drops other values, and on the CPU batch norm sees its own frames only.
    assert [e.loss for e in resumed] == pytest.approx([e.loss for e in alone], rel=0.1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, but WORLD_SIZE is not set: each MPI process would"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE is 4, but WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set; start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: got 'two', must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK: got 2, must be below WORLD"),
        # What `accelerate launch --cpu --num_processes 2` sets in the one process that it starts.
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "accelerate launch was to start several"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set, but RANK, MASTER_ADDR, MASTER_PORT is not; start with torchrun"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP: the processes cannot train one model this way; start with torchrun"),
    ],
)
def test_variables_of_a_launch_that_cannot_work_are_named(variables: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=f"^{message}"):
        launched_processes(variables)


def test_variables_of_a_launcher_give_the_number_of_processes():
    assert launched_processes({}) == 1
    assert launched_processes({"WORLD_SIZE": "1", "PMI_SIZE": "1"}) == 1
    # A shell of a SLURM or MPI job that trains in a single process.
    assert launched_processes({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) == 1
    assert launched_processes({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) == 1
    assert launched_processes({"WORLD_SIZE": "1", "PMI_SIZE": "4", "PMI_RANK": "3"}) == 1
    torchrun = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}
    assert launched_processes(torchrun | {"OMPI_COMM_WORLD_SIZE": "4"}) == 4


@pytest.mark.parametrize(
    ("variables", "prints"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"WORLD_SIZE": "1", "PMI_SIZE": "4", "PMI_RANK": "3"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, False),
    ],
)
def test_all_but_the_first_of_several_processes_are_silent(variables: dict[str, str], prints: bool):
    assert is_main_process(variables) == prints


def test_group_of_a_single_process_of_torchrun_is_left(monkeypatch: pytest.MonkeyPatch, recwarn):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    variables = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    with suppress(ZeroDivisionError), joined_world():
        assert [current_world(), current_world()] == [SINGLE_PROCESS, SINGLE_PROCESS]
        assert torch.distributed.is_initialized()
        raise ZeroDivisionError  # an error of the training
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads
    assert not [str(warning.message) for warning in recwarn if "OMP_NUM_THREADS" in str(warning.message)]


def test_fp16_is_refused_where_the_launcher_selects_the_cpu(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"train\.precision: got fp16, but training runs on the CPU"):
        build_accelerator(tiny(train__precision="fp16"))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_launch_that_cannot_work_is_refused_in_one_line_by_the_main_process(
    rank: str, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
    assert train_command(two_processes.command(tmp_path / "out", cache)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == (rank == "0")
    assert not shown.err or shown.err.startswith("error: OMPI_COMM_WORLD_SIZE is 2, but WORLD_SIZE is not set")
    assert not (tmp_path / "out").exists()


def test_accelerate_refuses_another_precision_unless_it_forgets_the_first():
    """Fails where Accelerate no longer does so: then `forget_state_of_accelerate_1` is not needed any more."""
    forget_state_of_accelerate_1()
    Accelerator(mixed_precision="no", cpu=True)
    with pytest.raises(ValueError, match="already been initialized"):
        Accelerator(mixed_precision="bf16", cpu=True)
    forget_state_of_accelerate_1()
    assert Accelerator(mixed_precision="bf16", cpu=True).mixed_precision == "bf16"
    forget_state_of_accelerate_1()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_gpus(2)
    with pytest.raises(ConfigError, match="2 processes on this machine, which has 1 GPUs; start at most 1"):
        check_gpus(1)


def test_mistake_of_several_processes_is_told_once(environment: dict[str, str], tmp_path: Path, cache: str):
    mistake = two_processes.command(tmp_path / "out", cache, "train.batch_size=3")
    started = two_processes.start([sys.executable, "-m", "fgseg.train", *mistake], os.environ | environment)
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert outputs[0].startswith("error: train.batch_size: got 3, must be a multiple of 2")
    assert outputs[1] == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(900)
@pytest.mark.ray
@pytest.mark.slow
def test_trial_that_loses_a_process_ends_whole_and_continues_from_its_checkpoint(start, tmp_path: Path):
    storage = tmp_path / "runs"
    own = ["--trials", "1", "--processes-per-trial", "2", "--max-failures", "3", "--set", "train.epochs=12"]
    driver = start(storage, *own)
    killed: list[list[psutil.Process]] = []
    for kind, count in (("ray::RayTrainWorker", 2), ("ray::TrainController", 1), ("ray::ResourceTrainable", 1)):
        begun = rf"continued \(attempt {len(killed) + 1}\)" if killed else "started"
        driver.wait_for(rf"{begun}[\s\S]*epoch \d+/12", 200)
        processes = driver.processes(kind)
        assert len(processes) == count, driver.processes("ray::")
        killed.append(processes)
        processes[-1].kill()
    assert driver.finish(200) == 0, driver.output
    (trial,) = Ledger(f"sqlite:///{storage}/small/study.db", "small").trials()
    assert (trial.state, trial.attempt, trial.failures) == (State.COMPLETE, 4, 3), driver.output
    assert [e.epoch for e in trial.epochs] == list(range(1, 13))
    assert [e.attempt for e in trial.epochs] == sorted(e.attempt for e in trial.epochs)
    assert {e.attempt for e in trial.epochs} == {1, 2, 3, 4}
    assert not any(process.is_running() for processes in killed for process in processes)
    assert audit(storage, "small") == []
