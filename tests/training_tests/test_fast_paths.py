"""Every fast path computes what the plain one does, and one trial leaves nothing to the next."""

import json
import math
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from random_frames import resident, some_frames
from thin_street import THIN_STREET
from torch import Tensor
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from fgseg.data.device_frames import HostFrames
from fgseg.devices import tune_malloc
from fgseg.losses import HybridLoss
from fgseg.metrics.evaluator import evaluate
from fgseg.metrics.iou import class_iou
from fgseg.model.decode_head import Dropout
from fgseg.training.compiled_step import (
    WARM_UP,
    CompiledStep,
    predict_unhooked,
    restoring_state,
    wants_compiling,
)
from fgseg.training.loop import train
from fgseg.training.step import Step
from fgseg.training.trainer import TrainingState, build_training_state
from scripts.bench.trial import Events, table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

RECIPE = {"loss__edge": 0.2, "loss__hard_pixels": 0.2, "loss__soft_iou_over": "batch", "train__ema": 0.9}
RECIPE |= {"train__head_lr_factor": 0.5, "train__warmup": 0.2, "train__weight_decay": 0.01}
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def groups(count: int, size: int = 2, device: torch.device = CPU) -> list[list[tuple[Tensor, Tensor]]]:
    """The groups of `count` steps, one batch each."""
    frames = resident(some_frames(count * size))
    batches = (frames.batch(index) for index in torch.arange(count * size).split(size))
    return [[(images.to(device), labels.to(device))] for images, labels in batches]


def without_chance(state: TrainingState) -> TrainingState:
    """Drop nothing: compiled code draws other random numbers."""
    for module in state.model.modules():
        for name in {"p", "drop_prob"} & vars(module).keys():
            setattr(module, name, 0.0)
    state.model.train()
    return state


def run_steps(state: TrainingState, batches: list) -> tuple[Tensor, Tensor]:
    """The sums of the loss and its terms, and all weights that are evaluated in a row."""
    for group in batches:
        state.step(group)
    return state.step.loss_sums.cpu(), torch.cat([p.detach().flatten() for p in state.evaluated.parameters()]).cpu()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own look at it
@pytest.mark.parametrize(
    ("pixels", "recipe"),
    [(0, {}), (2**14, {}), (2**14, RECIPE)],  # frames of 64x128 by SSIM's form for large ones, and as they are
)
def test_compiled_step_computes_what_the_plain_one_does(
    tiny, pixels: int, recipe: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fgseg.training.compiled_step.BACKEND", "aot_eager")
    monkeypatch.setattr("fgseg.losses.ssim.MAX_DIRECT_PX", pixels)
    results = []
    for setting in ("off", "on"):
        run = tiny(train__compile=setting, loss__lovasz=0.3, train__lr=1e-4, **recipe)
        state = without_chance(build_training_state(run, 6))
        results.append(run_steps(state, groups(3)))
        assert getattr(state.step, "usable", False) is (setting == "on")
    torch.testing.assert_close(*(sums for sums, _ in results), rtol=1e-5, atol=0)  # float32 sums in another order
    # AdamW divides by the gradient's size: where that is near 0, rounding decides up to lr a step.
    torch.testing.assert_close(*(weights for _, weights in results), rtol=0, atol=3e-4)
    step = weakref.ref(state.step)
    del state
    assert step() is None  # nor is a GPU's memory held for longer


def test_group_of_another_shape_takes_the_plain_way(tiny, monkeypatch: pytest.MonkeyPatch):
    compiled = []

    def note(part, **options):
        def call(*tensors: Tensor):
            compiled.append(len(tensors[1]))
            return part(*tensors)

        return call

    monkeypatch.setattr(torch, "compile", note)
    state = build_training_state(tiny(train__compile="on"), 6)
    assert isinstance(state.step, CompiledStep)
    run_steps(state, [*groups(2), *groups(1, size=1)])
    assert compiled == [2] * 6  # model and loss of the rehearsal and of two groups; not the single image
    assert state.schedule.last_epoch == 3


def falls_back(tiny, caplog: pytest.LogCaptureFixture) -> str:
    """Train the plain way and with a compiler that fails; returns the warning."""
    results = []
    for setting in ("off", "on"):
        state = build_training_state(tiny(train__compile=setting), 6)
        state.model.train()
        results.append(run_steps(state, groups(3)))
    assert all(torch.equal(plain, other) for plain, other in zip(*results, strict=True))
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "fgseg.training.compiled_step"]
    assert warning.startswith("train.compile: the compiled step is not used") and "\n" not in warning
    return warning


def test_compiler_that_raises_leaves_the_plain_step_and_a_warning(tiny, monkeypatch: pytest.MonkeyPatch, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("there is\nno compiler")

    monkeypatch.setattr("fgseg.training.compiled_step.BACKEND", refuse)
    assert "there is no compiler" in falls_back(tiny, caplog)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: 30 * logits, "the loss is"),
        (lambda logits: logits + 3 * (logits - logits.detach()), "the gradient's norm is"),
    ],
)
def test_compiler_that_is_wrong_leaves_the_plain_step_and_a_warning(tiny, change, reason: str, monkeypatch, caplog):
    def miscompile(part, **options):
        return part if isinstance(part, HybridLoss) else lambda *given: change(part(*given))

    monkeypatch.setattr(torch, "compile", miscompile)
    assert reason in falls_back(tiny, caplog)


def test_memory_that_runs_out_while_recording_leaves_the_plain_step_which_fits(tiny, monkeypatch, caplog):
    def full(step: CompiledStep, group) -> None:
        try:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(CompiledStep, "compile_and_check", full)
    assert "previous error during capture after OutOfMemoryError: Tried to allocate" in falls_back(tiny, caplog)


def test_plain_step_that_does_not_fit_is_no_reason_to_go_on(tiny, monkeypatch: pytest.MonkeyPatch):
    def full(*args) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(CompiledStep, "update", full)
    with pytest.raises(torch.OutOfMemoryError):
        build_training_state(tiny(train__compile="on"), 6).step(groups(1)[0])


def test_step_whose_numbers_hang_on_chance_is_allowed_as_much(tiny):
    step = build_training_state(tiny(train__compile="on", loss__lovasz=0, loss__ssim=0), 6).step
    one, names = [1.0] * (2 + len(step.criterion.terms)), len(step.criterion.terms)
    other = [1.0] * (1 + names) + [2.0]
    assert step.difference(one, one, other).startswith("the gradient's norm is 2")
    assert step.difference(one, [1.0] * (1 + names) + [1.4], other) == ""
    assert step.difference(one, one, [math.nan, *one[1:]]).startswith("the loss is nan")


@pytest.mark.parametrize("halfway", [False, True])
def test_step_that_is_taken_back_leaves_nothing(tiny, halfway: bool):
    results = []
    for tries in (0, 2):
        state = build_training_state(tiny(train__compile="on"), 6)
        state.model.train()
        step = state.step
        step.fast = [partial(predict_unhooked, step.model), step.criterion]
        step.scaler = GradScaler("cpu", init_scale=4.0)
        for _ in range(tries):
            with suppress(ZeroDivisionError), restoring_state(step):
                step.update_unwrapped(groups(1)[0])
                if halfway:
                    step.scaler.unscale_(state.optimizer)
                    raise ZeroDivisionError
        for group in groups(2):
            step.replay(group)
        results.append((*run_steps(state, []), torch.rand(3), step.scaler.get_scale()))
    assert [type(part) for part in results[0]] == [Tensor, Tensor, Tensor, float]
    for alone, after in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(alone), torch.as_tensor(after))


def test_loss_compiled_for_one_trial_serves_another_with_other_weights():
    def compiled(weights: dict[str, float], class_weights: list[float]) -> str:
        code = []
        torch.compiler.reset()
        criterion = torch.compile(
            HybridLoss(weights, class_weights), backend=lambda graph, inputs: code.append(graph.code) or graph
        )
        criterion(torch.zeros(1, 7, 8, 8, requires_grad=True), torch.zeros(1, 8, 8, dtype=torch.uint8))
        return "".join(code)

    first = compiled({"cross_entropy": 1.0, "soft_iou": 0.5, "lovasz": 0}, [1] * 7)
    assert "softmax" in first
    assert compiled({"cross_entropy": 0.3, "soft_iou": 1.7, "lovasz": 0}, [1, 5, 1, 1, 5, 5, 2]) == first
    assert compiled({"cross_entropy": 0.3, "soft_iou": 0, "lovasz": 1.7}, [1] * 7) != first


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in func.name() for name in self.WAITING), func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [{}, RECIPE])
def test_nothing_in_a_step_reads_a_number_from_the_device(tiny, recipe: dict[str, object]):
    state = build_training_state(tiny(loss__lovasz=0.3, **recipe), 6)
    group = groups(1)[0]
    with NoWaiting():
        state.step(group)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        state.step.loss_sums[0].item()


@pytest.mark.parametrize("images", [1, 3, 5])
def test_evaluation_does_not_depend_on_how_many_images_are_judged_at_a_time(tiny, images: int, monkeypatch):
    model = build_training_state(tiny(), 6).model
    monkeypatch.setattr("fgseg.metrics.evaluator.CPU_BATCH_PX", images * 64 * 128)
    counts = evaluate(model, HostFrames(some_frames(), CPU))
    monkeypatch.setattr("fgseg.metrics.evaluator.CPU_BATCH_PX", 1)
    alone = evaluate(model, resident(some_frames()))
    assert counts.shape == (5, 7, 7) and counts.sum() == (some_frames().labels != 255).sum()
    assert (counts - alone).abs().sum() <= 1e-4 * counts.sum()  # two classes that are equal but for rounding


def test_quick_dropout_drops_and_scales_as_torchs_does():
    values = torch.ones(2, 64, 32, 64).to(memory_format=torch.channels_last)
    dropped = Dropout(0.1)(values)
    assert dropped.stride() == values.stride()
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=4 * (0.09 / values.numel()) ** 0.5)  # four standard deviations
    assert dropped[dropped != 0].unique().item() == pytest.approx(1 / 0.9, rel=1e-4)  # p is rounded to 2**-16
    assert Dropout(0.1).eval()(values) is values


def test_quick_dropout_drops_values_independently_and_follows_the_seed():
    values = torch.ones(7, 11, 13)  # not a multiple of the four values that share a draw
    masks = [torch.manual_seed(seed) and Dropout(0.5)(values) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    pairs = masks[0].flatten()[:1000].view(-1, 4) > 0
    agreement = (pairs[:, :1] == pairs[:, 1:]).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.08)  # 750 pairs: four standard deviations


def test_allocator_takes_its_settings_on_glibc():
    glibc = sys.platform.startswith("linux") and "gnu" in sys.implementation._multiarch
    assert tune_malloc() is glibc


@pytest.mark.parametrize(
    ("setting", "on_gpu", "on_cpu"), [("auto", True, False), ("on", True, True), ("off", False, False)]
)
def test_auto_compiles_on_a_gpu_only(setting: str, on_gpu: bool, on_cpu: bool):
    assert wants_compiling(setting, torch.device("cuda")) is on_gpu
    assert wants_compiling(setting, CPU) is on_cpu


ALONE = """
import json, sys, torch
from fgseg.config.loading import Layer, build
from fgseg.training.loop import train
torch.set_num_threads(1)
history = train(build([Layer("alone", json.loads(sys.argv[1]))]), sys.argv[2])
print(json.dumps([[e.miou, e.loss, e.terms, e.confusion] for e in history]))
"""


def test_trial_gives_the_same_numbers_after_another_trial_as_alone(tiny, tmp_path: Path):
    run = tiny(train__epochs=2)
    command = [sys.executable, "-c", ALONE, json.dumps(run.flat()), str(tmp_path / "alone")]
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    other = {"precision": "bf16", "batch_size": 3, "accumulation": 2, "seed": 7, "epochs": 1}
    train(tiny(loss__lovasz=1, **{f"train__{key}": value for key, value in other.items()}), tmp_path / "other")
    after = train(run, tmp_path / "after")
    assert json.loads(alone) == [[e.miou, e.loss, e.terms, e.confusion] for e in after]
    weights = [next((tmp_path / name).glob("*-000002.safetensors")).read_bytes() for name in ("alone", "after")]
    assert weights[0] == weights[1]


def test_trial_after_the_first_starts_in_under_a_second(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps, call = [], Step.__call__

    def noted(step: Step, group) -> None:
        steps.append(time.perf_counter())
        call(step, group)

    monkeypatch.setattr(Step, "__call__", noted)
    waits = []
    for number in range(4):
        began, before = time.perf_counter(), len(steps)
        train(tiny(train__epochs=1), tmp_path / str(number))
        waits.append(steps[before] - began)
    assert min(waits[1:]) < 1  # the quickest of three: the machine may be busy


def test_costs_of_a_trial_are_told_apart(tmp_path: Path):
    lines = []
    for number, begin in ((0, 0), (1, 100)):
        events = {"asked": 1, "start": 4, "step": 6, "stepped": 16, "save": 17, "saved": 19}
        lines += [f"asking -1 {begin}", *(f"{event} {number} {begin + when}" for event, when in events.items())]
    (tmp_path / "events").write_text("\n".join([*lines, "asking -1 120"]))
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in table(Events.read(tmp_path / "events"), 2, 0.5)]
    assert rows[2:] == [
        [f"{a:.2f} s", f"{b:.2f} s"] for a, b in ((5, 5), (3, 3), (2, 2), (84, 4), (81, 1), (2, 2), (0.5, 0.5))
    ]


@pytest.mark.filterwarnings("ignore")  # the compiler's own, which differ between cards
@pytest.mark.parametrize("recipe", [{}, RECIPE])
@pytest.mark.gpu
def test_recorded_step_computes_what_the_plain_one_does(tiny, gpu: torch.device, recipe: dict[str, object]):
    results = []
    for setting in ("off", "on"):
        run = tiny(train__compile=setting, train__lr=1e-4, train__precision="no", train__epochs=9, **recipe)
        state = without_chance(build_training_state(run, 6))
        results.append(run_steps(state, groups(WARM_UP + 4, device=gpu)))
        assert getattr(state.step, "graph", None) is not None or setting == "off"
    torch.testing.assert_close(*(sums for sums, _ in results), rtol=1e-3, atol=0)  # tf32 convolutions
    torch.testing.assert_close(*(weights for _, weights in results), rtol=0, atol=2e-3)  # lr times steps, and some


@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
def test_recording_that_breaks_off_leaves_the_plain_step_on_a_gpu(tiny, gpu: torch.device, monkeypatch, caplog):
    update = CompiledStep.update_unwrapped

    def waits(step: CompiledStep, group) -> None:
        if torch.cuda.is_current_stream_capturing():
            step.loss_sums.sum().item()  # refused there
        update(step, group)

    monkeypatch.setattr(CompiledStep, "update_unwrapped", waits)
    state = build_training_state(tiny(train__compile="on", train__epochs=9), 6)
    sums, _ = run_steps(state, groups(4, device=gpu))
    assert state.step.graph is None and sums.isfinite().all()
    assert "the compiled step is not used" in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [{}, RECIPE | {"train__warmup": 0}])
@pytest.mark.parametrize("setting", ["off", "on"])
@pytest.mark.gpu
def test_step_on_a_gpu_never_waits_for_it(tiny, gpu: torch.device, setting: str, recipe: dict[str, object]):
    state = build_training_state(tiny(train__compile=setting, train__epochs=9, **recipe), 6)
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


def bench(*arguments: str) -> str:
    """The table of a small benchmark."""
    sizes = ("--frames", "3", "--png", "64x128", "--size", "64x128", "--cpu-size", "64x128", "--model", "small")
    command = [sys.executable, "-m", "scripts.bench.train", *sizes, "--seconds", "0.1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_benchmark_prints_a_row_with_both_sides_and_names_the_machine():
    shown = bench("--only", "hybrid loss").splitlines()
    assert "cores" in shown[0] and torch.__version__ in shown[0]
    assert shown[1] == "synthetic scenes: 3 PNG files of 128x64"
    row = next(line for line in shown if line.startswith("| CPU: hybrid loss"))
    assert row.count(" ms |") == 2 and row.endswith("x | 1.5x |")
    assert sum("needs a GPU" in line for line in shown) == 2


def test_benchmark_of_equality_judges_as_trials_are_judged_and_weighs_the_difference(tiny):
    from scripts.bench import equality

    model, frames = build_training_state(tiny(), 6).model, some_frames()
    counts = evaluate(model, resident(frames)).sum(0)
    expected = [iou for iou in class_iou(counts, THIN_STREET).values() if not math.isnan(iou)]
    assert equality.mean_iou(model, frames) == pytest.approx(
        sum(expected) / len(expected), abs=1e-4
    )  # near ties at a few pixels
    near = equality.table({"source": [0.4, 0.42, 0.41], "ours": [0.41, 0.4, 0.42]})[-1]
    assert "within twice" in near and "0.0082" in near
    assert "beyond twice" in equality.table({"source": [0.4, 0.42, 0.41], "ours": [0.5, 0.52, 0.51]})[-1]


def test_step_is_the_plain_one_by_default_on_the_cpu(tiny):
    assert type(build_training_state(tiny(train__compile="auto"), 6).step) is Step
