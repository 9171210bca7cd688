"""Training one model: its numbers, its continuation to the last bit, its stand-alone command."""

import gc
import math
import subprocess
import sys
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from power_cut import PowerCut, cut_after
from random_frames import some_frames
from small_data import save, write_cityscapes
from steps import with_scaler

from fgseg.data import load_splits
from fgseg.data.device_frames import HostFrames
from fgseg.inference.trained_model import load_trained, open_trained_model
from fgseg.metrics.boundary_iou import boundary_counts, class_boundary_iou
from fgseg.metrics.evaluator import confusion_per_image
from fgseg.results import DivergedError, EpochResult
from fgseg.train import main
from fgseg.training.compiled_parts import PartsCache
from fgseg.training.epoch import check_finite, train_one_epoch
from fgseg.training.imports import import_training
from fgseg.training.loop import train
from fgseg.training.trainer import TrainingState, build_training_state

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(history: list[EpochResult]) -> list[tuple[object, ...]]:
    """All that must repeat to the last bit."""
    return [(e.epoch, e.miou, e.loss, *e.terms.values(), str(e.confusion)) for e in history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Filled by the first test that needs an uninterrupted run."""
    return []


def uninterrupted(whole: list, tiny, tmp_path: Path) -> list[tuple[object, ...]]:
    if not whole:
        whole.append(numbers(train(tiny(), tmp_path / "whole")))
    return whole[0]


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.slow
def test_continued_training_gives_the_epochs_of_an_uninterrupted_one(tiny, tmp_path: Path, whole: list, epoch: int):
    expected = uninterrupted(whole, tiny, tmp_path)
    with pytest.raises(PowerCut):
        train(tiny(), tmp_path / "cut", cut_after(epoch))
    seen: list[EpochResult] = []
    assert numbers(train(tiny(), tmp_path / "cut", seen.append)) == expected
    assert [e.epoch for e in seen] == list(range(epoch + 1, 4))


@pytest.mark.slow
def test_training_with_the_whole_recipe_continues_to_the_last_bit(tiny, tmp_path: Path):
    recipe = {
        "data__crop": "32x64", "data__rare_class_temperature": 0.1, "augment__flip_prob": 0.5, "augment__scale": 2.0,
        "augment__colour": 1.0, "copy_paste__prob": 0.8, "copy_paste__mode": "component", "train__epochs": 2,
        "train__ema": 0.9, "train__warmup": 0.2, "train__weight_decay": 0.01, "train__head_lr_factor": 2,
        "loss__edge": 0.2, "loss__hard_pixels": 0.7, "loss__soft_iou_over": "batch", "model__drop_path": 0.2,
    }  # fmt: skip
    expected = numbers(train(tiny(**recipe), tmp_path / "whole"))
    with pytest.raises(PowerCut):
        train(tiny(**recipe), tmp_path / "cut", cut_after(1))
    assert numbers(train(tiny(**recipe), tmp_path / "cut")) == expected
    assert expected != numbers(train(tiny(train__epochs=2), tmp_path / "plain"))


def test_same_settings_and_seed_give_the_same_weights(tiny, tmp_path: Path):
    for name in ("a", "b"):
        train(tiny(train__epochs=1), tmp_path / name)
    weights = [next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_another_seed_gives_other_numbers(tiny, tmp_path: Path):
    runs = [train(tiny(train__epochs=1, train__seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    assert runs[0][0].loss != runs[1][0].loss


def test_epoch_result_reports_every_term_in_use_and_plausible_values(tiny, tmp_path: Path):
    result = train(tiny(train__epochs=1), tmp_path)[0]
    assert set(result.terms) == {"cross_entropy", "ssim", "soft_iou"}
    weighted = result.terms["cross_entropy"] + 0.4 * result.terms["ssim"] + 0.5 * result.terms["soft_iou"]
    assert result.loss == pytest.approx(weighted, rel=1e-5)  # float32 sums in two orders
    assert sum(map(sum, result.confusion)) == 4 * 64 * 128
    assert result.images_per_s > 0


def test_validation_measures_the_boundary_iou_of_the_saved_model_if_asked(tiny, tmp_path: Path):
    run = tiny(train__epochs=1, train__boundary_scores=True)
    (result,) = train(run, tmp_path)
    with open_trained_model(str(tmp_path)) as found:
        model = load_trained(found)
    frames = HostFrames(load_splits(run.data, ["val"])["val"], torch.device("cpu"))
    (counts,) = confusion_per_image(model, frames, boundary_counts)
    expected = class_boundary_iou(counts.sum(0), result.iou, run.label_set())
    assert result.boundary_iou == pytest.approx(expected, nan_ok=True)
    assert any(value > 0 for value in expected.values())


def test_epoch_tells_its_memory_and_old_records_lack_it(tiny, tmp_path: Path):
    (result,) = train(tiny(train__epochs=1), tmp_path)
    assert 0.1 < result.metrics()["system/memory_gib"] < 100
    assert "system/gpu_memory_gib" not in result.metrics()
    assert result.load.keys() == {"cpu_utilization_percentage", "system_memory_usage_megabytes"}
    assert 0 < result.load["cpu_utilization_percentage"] <= 100
    record = result.to_json()
    for name in ("memory_gib", "gpu_memory_gib", "compile_s", "load"):
        del record[name]
    assert not any(name.startswith("system/") for name in EpochResult.from_json(record).metrics())


def test_learning_rate_falls_linearly_to_zero_over_all_steps(tiny):
    state = build_training_state(tiny(train__accumulation=2, train__lr=0.1), frames=6)  # 3 batches, 2 steps, 3 epochs
    rates = []
    for _ in range(6):
        rates.append(state.schedule.get_last_lr()[0])
        state.optimizer.step()
        state.schedule.step()
    assert rates == pytest.approx([0.1 * (1 - k / 6) for k in range(6)])
    assert state.schedule.get_last_lr()[0] == 0


def test_accumulated_batches_train_like_one_large_batch(tiny, tmp_path: Path):
    """The loss is a mean over images where classes are not weighted."""
    calm = {"copy_paste__prob": 0, "train__epochs": 1, "train__lr": 1e-5}
    runs = [
        train(tiny(train__batch_size=b, train__accumulation=a, **calm), tmp_path / f"{b}-{a}")[0]
        for b, a in ((6, 1), (3, 2))
    ]
    assert runs[0].loss == pytest.approx(runs[1].loss, rel=0.02)  # batch norm and drop path see other groups


def test_divergence_names_epoch_term_and_share():
    with pytest.raises(
        DivergedError, match=r"epoch 3: ssim is NaN or infinite for 2\.5% of the images; lower train\.lr"
    ):
        check_finite(3, {"loss": 0.025, "cross_entropy": 0.0, "ssim": 0.025}, limit=0.0)
    with pytest.raises(DivergedError, match=r"epoch 1: loss is NaN or infinite for 20\.0% of the images"):
        check_finite(1, {"loss": 0.2, "ssim": 0.0}, limit=0.1)


def test_few_overflows_of_fp16_are_a_warning_and_none_is_silent(caplog: pytest.LogCaptureFixture):
    check_finite(3, {"loss": 0.0, "ssim": 0.0}, limit=0.1)
    assert caplog.text == ""
    check_finite(3, {"loss": 0.1, "ssim": 0.1}, limit=0.1)
    expected = (
        "epoch 3: ssim is NaN or infinite for 10.0% of the images, whose steps fp16 skipped; more than 10 % would"
    )
    assert expected in caplog.text


def overflow(state: TrainingState, at: set[int]) -> None:
    """Make the loss of the given calls infinite."""
    criterion, calls = state.step.criterion.forward, count()

    def forward(*args: Any, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = criterion(*args, **options)
        return (loss * math.inf, terms | {"ssim": loss.detach() * math.inf}) if next(calls) in at else (loss, terms)

    state.step.criterion.forward = forward


def test_overflow_of_fp16_leaves_weights_and_means_alone_and_counts_for_the_schedule(tiny):
    run = tiny(train__epochs=1, train__batch_size=2, copy_paste__prob=0)
    frames = HostFrames(some_frames(24), torch.device("cpu"))
    state = with_scaler(build_training_state(run, len(frames)))
    overflow(state, at={5})
    loss, terms = train_one_epoch(state, frames, 1)
    assert math.isfinite(loss) and terms.keys() == {"cross_entropy", "ssim", "soft_iou"} and terms["ssim"] < 1
    assert all(weights.isfinite().all() for weights in state.model.parameters())
    steps = {int(moments["step"]) for moments in state.optimizer.state.values()}
    assert (steps, state.schedule.last_epoch) == ({11}, 12)


def test_overflow_in_the_network_leaves_the_statistics_of_batch_norm_finite(tiny):
    run = tiny(train__epochs=1, train__batch_size=2, copy_paste__prob=0)
    frames = HostFrames(some_frames(24), torch.device("cpu"))
    state = with_scaler(build_training_state(run, len(frames)))
    norm, calls = state.model.decode_head.batch_norm, count()
    norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] * (math.inf if next(calls) == 5 else 1),))
    train_one_epoch(state, frames, 1)
    assert next(calls) == 12
    assert all(buffer.isfinite().all() for buffer in state.model.buffers())


def overflow_backward(state: TrainingState, above: float) -> None:
    """Make gradients infinite, but not the loss, while the scale of the loss is above a number."""
    scaler = state.step.scaler
    next(state.model.parameters()).register_hook(lambda g: g * math.inf if scaler.get_scale() > above else g)


@pytest.fixture(params=["off", "on"])
def twelve_steps(tiny, request, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TrainingState, HostFrames]]:
    """A training of an epoch of twelve plain or compiled steps, and its frames."""
    monkeypatch.setattr("fgseg.training.compiled_step.CACHE", PartsCache())
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    frames = HostFrames(some_frames(24), torch.device("cpu"))
    changes = {"train__epochs": 1, "train__batch_size": 2, "train__compile": request.param}
    state = build_training_state(tiny(**changes), len(frames))
    yield state, frames
    assert (getattr(state.step, "compiled", None) is not None) is (request.param == "on")


def test_gradients_that_always_overflow_are_a_divergence_although_the_loss_is_finite(twelve_steps):
    state, frames = twelve_steps
    overflow_backward(with_scaler(state), above=0)
    with pytest.raises(DivergedError, match="epoch 1: the gradient is NaN or infinite in 12 of 12 steps; lower"):
        train_one_epoch(state, frames, 1)


def test_steps_skipped_until_the_scale_fits_are_a_warning(twelve_steps, caplog: pytest.LogCaptureFixture):
    state, frames = twelve_steps
    overflow_backward(with_scaler(state), above=128)
    train_one_epoch(state, frames, 1)
    assert "infinite in 3 of 12 steps, which fp16 skipped until its scale of the loss was 128" in caplog.text
    assert {int(moments["step"]) for moments in state.optimizer.state.values()} == {9}
    caplog.clear()
    train_one_epoch(state, frames, 2)
    assert caplog.text == ""


def test_one_infinite_gradient_without_a_scaler_is_a_divergence(twelve_steps):
    state, frames = twelve_steps
    calls = count()
    last = 11 + (4 if state.run.train.compile == "on" else 0)  # after four dry runs
    next(state.model.parameters()).register_hook(lambda g: g * (math.inf if next(calls) == last else 1))
    with pytest.raises(DivergedError, match="in 1 of 12 steps"):
        train_one_epoch(state, frames, 1)


def test_overflow_without_a_scaler_has_destroyed_the_weights(tiny):
    state = build_training_state(tiny(train__epochs=1, copy_paste__prob=0), 24)
    overflow(state, at={11})
    with pytest.raises(DivergedError, match=r"epoch 1: ssim is NaN or infinite for 8\.3% of the images"):
        train_one_epoch(state, HostFrames(some_frames(24), torch.device("cpu")), 1)


def test_all_void_training_frames_leave_finite_numbers(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fgseg.training.epoch

    def blank(*args, **kwargs):
        yield torch.zeros(2, 3, 64, 128, dtype=torch.uint8), torch.full((2, 64, 128), 255, dtype=torch.uint8)

    monkeypatch.setattr(fgseg.training.epoch, "train_batches", blank)
    assert train(tiny(train__epochs=1), tmp_path)[0].loss == 0


@pytest.mark.filterwarnings("ignore")  # the compiler's own, which differ between cards
@pytest.mark.parametrize("setting", ["off", "on"])
@pytest.mark.gpu
def test_training_on_a_gpu_continues_where_it_was_cut(tiny, gpu: torch.device, tmp_path: Path, setting: str):
    with pytest.raises(PowerCut):
        train(tiny(train__compile=setting), tmp_path, cut_after(1))
    history = train(tiny(train__compile=setting), tmp_path)
    assert [e.compile_s is not None for e in history] == [setting == "on", setting == "on", False]
    assert [e.epoch for e in history] == [1, 2, 3]
    assert all(math.isfinite(e.loss) for e in history)
    assert {"system/gpu_memory_gib", "system/gpu_0_utilization_percentage"} <= history[0].metrics().keys()


def command(tmp_path: Path, cache: str, *extra: str) -> int:
    settings = [
        "data.height=64",
        "data.width=128",
        "data.train=6",
        "data.val=4",
        "train.epochs=1",
        "model.name=small",
        f"data.cache={cache}",
    ]
    sets = [part for s in (*settings, *extra) for part in ("--set", s)]
    return main(["--config", "configs/quickstart.yaml", *sets, "--out", str(tmp_path / "out")])


def test_command_trains_and_prints_a_line_per_epoch(tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]):
    assert command(tmp_path, cache) == 0
    assert "epoch 1/1  mIoU 0." in capsys.readouterr().out
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_command_tells_once_that_the_pictures_have_another_shape(tmp_path: Path, cache: str, capsys):
    root = write_cityscapes(tmp_path / "data", val=4)
    for path in (*root.glob("*/val/*/*.png"), *root.glob("*/val/*/*.jpg")):  # these have the shape of the frames
        save(np.asarray(Image.open(path))[:, :40], path)
    settings = ["data.reader=cityscapes", f"data.root={root}", "data.height=64", "data.width=64", "data.test=0"]
    assert command(tmp_path, cache, *settings) == 0
    assert capsys.readouterr().out.count("data.fit: the pictures are 2.00 times as wide as high at the median") == 1


def test_command_tells_a_mistake_in_one_line_and_writes_nothing(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
):
    assert command(tmp_path, cache, "model.name=b9") == 2
    assert capsys.readouterr().err.startswith(
        "error: model.name: no such model 'b9', nor a folder or hub id of that name"
    )
    assert not (tmp_path / "out").exists()


def test_command_refuses_to_continue_with_other_settings(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
):
    assert command(tmp_path, cache) == 0
    assert command(tmp_path, cache, "train.lr=0.1") == 2
    assert "was begun with other settings (train.lr: 0.001 there, 0.1 now)" in capsys.readouterr().err


def test_command_tells_a_folder_that_cannot_be_written(tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").write_text("a file")
    assert command(tmp_path, cache) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
        (OSError(28, "No space left on device", "/data/out"), 1, "error: /data/out: No space left on device\n"),
    ],
)
def test_command_tells_what_ended_it(
    tmp_path: Path,
    cache: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    error: BaseException,
    code: int,
    told: str,
):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("fgseg.train.train", fail)
    assert command(tmp_path, cache) == code
    assert capsys.readouterr().err == told
    monkeypatch.setattr("fgseg.train.is_main_process", lambda environment: False)
    assert command(tmp_path, cache) == code
    assert capsys.readouterr() == ("", told if isinstance(error, OSError) else "")


@pytest.mark.slow
def test_later_trials_of_a_process_free_the_model_of_the_one_before():
    """Mixed precision makes cycles, such as a patched `forward`, which the garbage collector has to find."""
    import_training()
    model = torch.nn.Linear(1, 1)
    model.forward = MethodType(lambda self: None, model)
    alive = weakref.ref(model)
    del model
    import_training()
    gc.collect()
    assert alive() is None


def test_fgseg_imports_none_of_the_search_libraries():
    heavy = "{'ray', 'optuna', 'mlflow', 'datasets', 'search'}"
    code = f"import sys, fgseg.train, fgseg.training.epoch, fgseg.data.folder; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
