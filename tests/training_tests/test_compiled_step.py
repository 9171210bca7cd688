"""The compiled step computes what the plain one does, and its code serves the later trials of a process."""

import logging
import math
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from power_cut import PowerCut, cut_after
from steps import CPU, RECIPE, groups, run_steps, with_scaler
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import AdamW

from fgseg.model.decode_head import Dropout
from fgseg.training import compiled_parts, compiled_step, graph_recorder
from fgseg.training.compiled_parts import COMPILE_S, MAX_ENTRIES, SAVED_S, CompiledParts, PartsCache, key_of
from fgseg.training.compiled_step import CompiledStep, wants_compiling
from fgseg.training.graph_recorder import WARM_UP, end_failed_capture, record, release_pool_of_torch_2_14
from fgseg.training.loop import train
from fgseg.training.step import Step
from fgseg.training.step_comparison import difference, dry_run, restoring_state
from fgseg.training.trainer import TrainingState, build_training_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread", "compiled_parts_cache"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # the compiler's own look at it
]


@pytest.fixture
def compiled_parts_cache(monkeypatch: pytest.MonkeyPatch) -> PartsCache:
    """A cache for this test alone: the one in use belongs to the process."""
    cache = PartsCache()
    monkeypatch.setattr(compiled_step, "CACHE", cache)
    return cache


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Trace model and loss, but generate no code; collects every traced graph.

    Dropout is that of a GPU: the one of the CPU draws its numbers by a function that torch.compile cannot trace.
    """
    graphs: list[torch.fx.GraphModule] = []

    def trace(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()  # the graphs of other tests
    monkeypatch.setattr(compiled_parts, "BACKEND", trace)
    monkeypatch.setattr(Dropout, "forward", torch.nn.Dropout.forward)
    return graphs


@pytest.fixture
def as_large_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let frames of 64x128 take the forms of SSIM and of attention that larger frames take on a GPU."""
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", 0)
    monkeypatch.setattr("fgseg.model.attention.GROUP_QUERIES", 128)  # four groups in the first stage


def start(tiny, **changes: object) -> TrainingState:
    """The state before the first step of a training whose step is compiled."""
    state = build_training_state(tiny(**{"train__compile": "on"} | changes), 6)
    state.model.train()
    return state


@pytest.mark.usefixtures("as_large_frames")
def test_compiled_step_computes_what_the_plain_one_does(tiny, quick):
    results = []
    for setting in ("off", "on"):
        state = start(tiny, train__compile=setting, loss__lovasz=0.3, train__lr=1e-4, **RECIPE)
        torch.manual_seed(0)
        results.append(run_steps(state, groups(3)))
        assert (getattr(state.step, "compiled", None) is not None) is (setting == "on")
    torch.testing.assert_close(*(sums for sums, _ in results), rtol=1e-5, atol=0)  # float32 sums in another order
    # AdamW divides by the gradient's size: where that is near 0, rounding decides up to lr a step.
    torch.testing.assert_close(*(weights for _, weights in results), rtol=0, atol=3e-4)
    step = weakref.ref(state.step)
    del state
    assert step() is None  # nor is a GPU's memory held for longer


def test_trials_of_a_process_compile_and_compare_once(tiny, quick, compiled_parts_cache, monkeypatch):
    runs = []
    monkeypatch.setattr(compiled_step, "dry_run", lambda step, act: runs.append(step) or dry_run(step, act))
    for number in range(4):
        changes = {"loss__ssim": 0.1 + number / 5, "class_weights__pole": 2.0 + number, "train__seed": number}
        state = start(tiny, train__lr=1e-3 * (number + 1), loss__hard_pixels=0.1 * (number + 1), **changes)
        run_steps(state, groups(1))
        assert state.step.compiled is not None and state.step.compiled.compared
    assert len(quick) == 2  # model and loss
    assert len(runs) == 3  # plain, compiled, and plain beside the memory of a capture
    run_steps(start(tiny, loss__lovasz=0.3, loss__hard_pixels=0.1, class_weights__pole=2.0), groups(1))
    assert len(quick) == 3 and len(compiled_parts_cache.parts) == 2  # another loss, the same model


def assert_overflow_is_skipped(state: TrainingState, batches: list) -> None:
    """Take three compiled steps, the second one with a scale of the loss at which the gradients overflow."""
    step, scaler = state.step, state.step.scaler
    _, before = run_steps(state, batches[:1])
    usual = scaler.state_dict()
    scaler.load_state_dict(usual | {"scale": math.inf})
    sums, skipped = run_steps(state, batches[1:2])
    assert torch.equal(before, skipped) and step.overflows == 1
    assert sums.isfinite().all() and not step.nonfinite.any()
    scaler.load_state_dict(usual | {"scale": 1024.0})
    _, after = run_steps(state, batches[2:])
    assert after.isfinite().all() and not torch.equal(before, after) and step.overflows == 1
    assert state.schedule.last_epoch == 3 and step.compiled is not None


def test_overflow_in_a_compiled_step_is_skipped_and_counted(tiny, quick, monkeypatch: pytest.MonkeyPatch):
    # On the CPU Accelerate does not divide the plain step's gradients by the scale before their norm is taken.
    monkeypatch.setattr("fgseg.training.step_comparison.TRIED_SCALE", 1.0)
    assert_overflow_is_skipped(with_scaler(start(tiny)), groups(3))


def test_training_by_compiled_steps_continues_where_it_was_cut(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    run = tiny(train__compile="on")
    whole = train(run, tmp_path / "whole")
    with pytest.raises(PowerCut):
        train(run, tmp_path / "cut", cut_after(1))
    history = train(run, tmp_path / "cut")
    assert [(e.loss, e.confusion) for e in history] == [(e.loss, e.confusion) for e in whole]
    # The first epoch of each process compiles.
    assert [e.compile_s is not None for e in whole] == [True, False, False]
    assert [e.compile_s is not None for e in history] == [True, True, False]
    assert whole[0].metrics()["train/compile_s"] == whole[0].compile_s > 0


def test_group_of_another_shape_takes_the_plain_way(tiny, monkeypatch: pytest.MonkeyPatch):
    compiled = []

    def note(part, **options):
        def call(*tensors: Tensor):
            compiled.append((part.__name__, len(tensors[1])))
            return part(*tensors)

        return call

    monkeypatch.setattr(torch, "compile", note)
    state = start(tiny)
    run_steps(state, [*groups(2), *groups(1, size=1)])
    # Twice before the first step, and in both steps; not for the single image.
    assert compiled == [("predict_traceable", 2), ("compute_loss", 2)] * 4
    assert state.schedule.last_epoch == 3


def test_ninth_key_drops_all_compiled_code(monkeypatch: pytest.MonkeyPatch):
    cache, resets = PartsCache(), []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(len(cache.parts)))
    parts = [cache.get(number) for number in range(MAX_ENTRIES)]
    assert all(cache.get(number) is parts[number] for number in range(MAX_ENTRIES)) and resets == []
    cache.get(MAX_ENTRIES)
    assert list(cache.parts) == [MAX_ENTRIES] and resets == [0]


def test_compiling_pays_off_for_a_long_training_or_after_short_ones_of_the_same_kind():
    cache, enough = PartsCache(), COMPILE_S / SAVED_S
    assert cache.justifies_compiling("long", enough)
    assert [cache.justifies_compiling("short", 0.4 * enough) for _ in range(4)] == [False, False, True, True]
    cache.get("known").compared = True
    assert cache.justifies_compiling("known", 100) and not cache.justifies_compiling("unknown", 100)


def test_training_too_short_to_compile_takes_the_plain_step(tiny, compiled_parts_cache, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    monkeypatch.setattr("fgseg.training.trainer.wants_compiling", lambda setting, device: True)
    state = start(tiny, train__compile="auto")
    run_steps(state, groups(1))
    assert type(state.step) is CompiledStep and (state.step.compiled, state.step.compile_s) == (None, None)
    assert list(compiled_parts_cache.plain_steps.values()) == [9]  # three epochs of three steps


def test_channels_last_and_equal_random_numbers_are_options_of_inductor(monkeypatch: pytest.MonkeyPatch):
    options = {}
    monkeypatch.setattr(torch, "compile", lambda part, **given: options.update({part.__name__: given["options"]}))
    CompiledParts()
    expected = {"force_layout_optimization": True, "fallback_random": True}
    assert options == {"predict_traceable": expected, "encode": expected, "compute_loss": None}


def falls_back(tiny, caplog: pytest.LogCaptureFixture) -> str:
    """Train the plain way and with a compiler that fails; returns the warning."""
    results = [run_steps(start(tiny, train__compile=setting), groups(3)) for setting in ("off", "on")]
    assert all(torch.equal(plain, other) for plain, other in zip(*results, strict=True))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("train.compile: the compiled step is not used") and "\n" not in warning
    return warning


def test_compiler_that_raises_leaves_the_plain_step_and_is_not_tried_again(tiny, monkeypatch, caplog):
    tries = []

    def refuse(*given):
        tries.append(given)
        raise RuntimeError("there is\nno compiler")

    monkeypatch.setattr(torch, "compile", lambda part, **options: refuse)
    assert "there is no compiler" in falls_back(tiny, caplog)
    caplog.clear()
    assert "there is no compiler" in falls_back(tiny, caplog)
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: 30 * logits, "the loss is"),
        (lambda logits: logits + 0.03 * (logits - logits.detach()), "the gradient's norm is"),
    ],
)
def test_compiler_that_is_wrong_leaves_the_plain_step_and_a_warning(tiny, change, reason: str, monkeypatch, caplog):
    def miscompile(part, **options):
        if part.__name__ != "predict_traceable":
            return part
        return lambda *given: (prediction := part(*given))._replace(logits=change(prediction.logits))

    monkeypatch.setattr(torch, "compile", miscompile)
    assert reason in falls_back(tiny, caplog)


def test_difference_of_one_percent_is_allowed():
    plain = [2.0, 1.0, 5.0]
    assert difference(["ssim"], plain, [2.019, 0.991, 5.04]) == ""
    assert (
        difference(["ssim"], plain, [2.0, 1.011, 5.0]) == "loss.ssim is 1.011 on the first batches, the plain step's 1"
    )
    assert difference(["ssim"], plain, [2.0, 1.0, 5.06]).startswith("the gradient's norm is 5.06")
    assert difference(["ssim"], plain, [float("nan"), 1.0, 5.0]).startswith("the loss is nan")


def test_memory_that_runs_out_while_recording_leaves_the_plain_step_and_is_tried_again(
    tiny, compiled_parts_cache, monkeypatch, caplog
):
    def full(step: CompiledStep, group) -> None:
        try:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(CompiledStep, "update_unwrapped", full)
    assert "previous error during capture after OutOfMemoryError: Tried to allocate" in falls_back(tiny, caplog)
    assert [parts.refused for parts in compiled_parts_cache.parts.values()] == [""]


def test_plain_step_that_does_not_fit_is_no_reason_to_go_on(tiny, monkeypatch: pytest.MonkeyPatch):
    def full(*args) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(CompiledStep, "update", full)
    with pytest.raises(torch.OutOfMemoryError):
        start(tiny).step(groups(1)[0])


@pytest.mark.parametrize("halfway", [False, True])
def test_step_that_is_taken_back_leaves_nothing(tiny, halfway: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    results = []
    for tries in (0, 2):
        state = start(tiny)
        step = state.step
        step.compiled = CompiledParts()
        step.scaler = GradScaler("cpu", init_scale=4.0)
        for _ in range(tries):
            with suppress(ZeroDivisionError), restoring_state(step):
                step.update_unwrapped(groups(1)[0])
                if halfway:
                    step.scaler.unscale_(state.optimizer)
                    raise ZeroDivisionError
        for group in groups(2):
            step.take(group)
        results.append((*run_steps(state, []), torch.rand(3), step.scaler.get_scale()))
    assert [type(part) for part in results[0]] == [Tensor, Tensor, Tensor, float]
    for alone, after in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(alone), torch.as_tensor(after))


@pytest.mark.parametrize("ended", [False, True])
def test_pool_of_a_capture_that_was_not_ended_is_released(ended: bool, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def pool() -> tuple[int, int]:
        if not ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return (0, 7)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        assert hasattr(torch._C, name) or not torch.version.cuda
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: calls.append((name, *given)), raising=False)
    release_pool_of_torch_2_14(SimpleNamespace(pool=pool), (0, 7))
    released = [("_cuda_endAllocateToPool", 3, (0, 7)), ("_cuda_releasePool", 3, (0, 7))]
    assert calls == ([] if ended else released)


@pytest.mark.parametrize(
    ("setting", "on_gpu", "on_cpu"), [("auto", True, False), ("on", True, True), ("off", False, False)]
)
def test_auto_compiles_on_a_gpu_only(setting: str, on_gpu: bool, on_cpu: bool):
    assert wants_compiling(setting, torch.device("cuda")) is on_gpu
    assert wants_compiling(setting, CPU) is on_cpu


def test_step_is_the_plain_one_by_default_on_the_cpu(tiny):
    assert type(build_training_state(tiny(train__compile="auto"), 6).step) is Step


@pytest.mark.filterwarnings("ignore")  # the compiler's own, which differ between cards
@pytest.mark.parametrize("recipe", [{}, {"loss__lovasz": 0.3}, RECIPE])
@pytest.mark.usefixtures("as_large_frames")
@pytest.mark.gpu
def test_recorded_step_computes_what_the_plain_one_does(tiny, gpu: torch.device, recipe: dict[str, object]):
    results = []
    for setting in ("off", "on"):
        changes = {"train__lr": 1e-4, "train__precision": "no", "train__epochs": 9}
        state = start(tiny, train__compile=setting, **changes, **recipe)
        torch.manual_seed(0)
        results.append(run_steps(state, groups(WARM_UP + 4, device=gpu)))
        assert getattr(state.step, "recorded", None) is not None or setting == "off"
    torch.testing.assert_close(*(sums for sums, _ in results), rtol=1e-3, atol=0)  # tf32 convolutions
    torch.testing.assert_close(*(weights for _, weights in results), rtol=0, atol=2e-3)  # lr times steps, and some


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("as_large_frames")
@pytest.mark.gpu
def test_second_trial_on_a_gpu_captures_without_compiling(tiny, compiled_parts_cache, gpu: torch.device):
    took = []
    for seed in range(2):
        state = start(tiny, train__seed=seed, train__epochs=9)
        run_steps(state, groups(2, device=gpu))
        assert state.step.recorded is not None
        took.append(state.step.compile_s)
        key = key_of(state.step, groups(2, device=gpu)[0])
    assert took[1] < took[0] / 2 and list(compiled_parts_cache.parts) == [key]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("as_large_frames")
@pytest.mark.gpu
def test_overflow_in_a_recorded_step_is_skipped_and_counted(tiny, gpu: torch.device):
    state = start(tiny, train__precision="fp16")
    state.step.scaler.load_state_dict(state.step.scaler.state_dict() | {"scale": 1024.0})
    assert_overflow_is_skipped(state, groups(3, device=gpu))
    assert state.step.recorded is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
def test_recording_that_breaks_off_leaves_the_plain_step_on_a_gpu(tiny, gpu: torch.device, monkeypatch, caplog):
    update = CompiledStep.update_unwrapped

    def waits(step: CompiledStep, group) -> None:
        update(step, group)
        if torch.cuda.is_current_stream_capturing():
            step.loss_sums.sum().item()  # refused there

    monkeypatch.setattr(CompiledStep, "update_unwrapped", waits)
    state = start(tiny, train__epochs=9)
    sums, _ = run_steps(state, groups(4, device=gpu))
    assert state.step.recorded is None and sums.isfinite().all()
    assert "the compiled step is not used" in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.gpu
def test_pool_of_a_capture_that_breaks_off_is_kept_unless_it_is_released(gpu, released: bool, monkeypatch):
    """Where this fails without the release, `release_pool_of_torch_2_14` is no longer needed."""
    kept = []
    if not released:
        monkeypatch.setattr(graph_recorder, "release_pool_of_torch_2_14", lambda *capture: kept.append(capture))

    def waits(group) -> None:
        tensor = torch.ones(2**24, device=gpu)  # 64 MiB
        if torch.cuda.is_current_stream_capturing():
            tensor.sum().item()

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(RuntimeError):
        record(waits, [], AdamW([torch.zeros(1, device=gpu)]))
    end_failed_capture(gpu)
    assert (torch.cuda.memory_reserved() >= before + 2**26) is not released
    for capture in kept:
        release_pool_of_torch_2_14(*capture)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [{}, {"loss__lovasz": 0.3}, RECIPE | {"train__warmup": 0}])
@pytest.mark.parametrize("setting", ["off", "on"])
@pytest.mark.usefixtures("as_large_frames")
@pytest.mark.gpu
def test_step_on_a_gpu_never_waits_for_it(tiny, gpu: torch.device, setting: str, recipe: dict[str, object]):
    state = start(tiny, train__compile=setting, train__epochs=9, **recipe)
    batches = groups(WARM_UP + 4, device=gpu)
    run_steps(state, batches[: WARM_UP + 1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for group in batches[WARM_UP + 1 :]:
            state.step(group)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    rate = 1 - state.schedule.last_epoch / 27  # 9 epochs of 3 steps
    assert float(state.optimizer.param_groups[0]["lr"]) == pytest.approx(3e-3 * rate, rel=1e-5)
