"""The settings of a complete recipe: definitions, resuming to the last bit, what is evaluated and exported."""

import json
from pathlib import Path

import pytest
import torch
from power_cut import PowerCut, cut_after
from random_frames import resident, some_frames
from safetensors.torch import load_file
from thin_street import THIN_STREET
from torch import Tensor
from transformers.models.segformer.modeling_segformer import SegformerDropPath

from fgseg.checkpoints.checkpoint import newest_checkpoint
from fgseg.config.errors import ConfigError
from fgseg.config.settings import RunConfig
from fgseg.data import load_splits
from fgseg.inference.trained_model import find_trained, load_trained
from fgseg.metrics.evaluator import evaluate
from fgseg.model.edge_head import SegformerWithEdges
from fgseg.model.segformer import build_model
from fgseg.results import EpochResult
from fgseg.storage.store import LocalStore
from fgseg.train import check_settings
from fgseg.training.loop import train
from fgseg.training.optimizer import build_optimizer, rate_factor
from fgseg.training.trainer import TrainingState, build_training_state
from fgseg.training.weight_average import WeightAverage

RECIPE = {
    "train__head_lr_factor": 10,
    "train__warmup": 0.2,
    "train__weight_decay": 0.01,
    "train__ema": 0.9,
    "train__accumulation": 2,
    "model__drop_path": 0.2,
    "loss__edge": 0.2,
    "loss__hard_pixels": 0.2,
    "loss__soft_iou_over": "batch",
}
EACH = [{key: value} for key, value in RECIPE.items() if key != "train__accumulation"]
EACH.append({"loss__soft_iou_over": "present"})


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are taken in another order on another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def groups(count: int) -> list[list[tuple[Tensor, Tensor]]]:
    """The groups of `count` steps, one batch of two frames each."""
    frames = resident(some_frames(2 * count))
    return [[frames.batch(index)] for index in torch.arange(2 * count).split(2)]


def take_steps(state: TrainingState, count: int = 3) -> TrainingState:
    state.model.train()
    for group in groups(count):
        state.step(group)
    return state


def test_rate_rises_during_the_warm_up_and_falls_to_zero():
    found = [rate_factor(step, 10, 4) for step in range(11)]
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([1 - k / 6 for k in range(7)])
    assert [rate_factor(step, 3, 0) for step in range(5)] == [1 - step / 3 for step in range(4)] + [0]


def test_warm_up_is_a_share_of_all_steps(tiny):
    state = build_training_state(tiny(train__warmup=0.5, train__lr=0.1), frames=6)  # 3 steps, 3 epochs
    assert state.schedule.get_last_lr()[0] == pytest.approx(0.1 / 5)


def test_heads_have_their_own_rate_and_norms_and_biases_do_not_decay(tiny):
    run = tiny(train__head_lr_factor=10, train__weight_decay=0.01, train__lr=1e-3)
    network = SegformerWithEdges(build_model("small", THIN_STREET))
    found = {}
    for group in build_optimizer(network, run.train).param_groups:
        found |= {id(weight): (group["lr"], group["weight_decay"]) for weight in group["params"]}
    for name, weight in network.named_parameters():
        decays = "norm" not in name and not name.endswith("bias")
        rate = 1e-3 if name.startswith("segformer.") else 1e-2
        assert found[id(weight)] == (pytest.approx(rate), 0.01 if decays else 0), name
    assert len(found) == len(list(network.parameters()))


def test_default_optimizer_has_one_group_in_the_order_of_the_weights(tiny):
    model = build_model("small", THIN_STREET)
    (group,) = build_optimizer(model, tiny().train).param_groups
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))
    assert group["weight_decay"] == 0


@pytest.mark.parametrize("kind", ["small", "folder"])
def test_drop_path_replaces_that_of_the_checkpoint(kind: str, tmp_path: Path):
    build_model("small", THIN_STREET).save_pretrained(tmp_path)
    name = kind if kind == "small" else str(tmp_path)
    for drop_path, expected in ((None, 0.1), (0.3, 0.3), (0.0, 0.0)):
        model = build_model(name, THIN_STREET, drop_path)
        rates = [m.drop_prob for m in model.modules() if isinstance(m, SegformerDropPath)]
        assert max(rates, default=0.0) == pytest.approx(expected)
        assert model.config.drop_path_rate == expected


def test_average_follows_its_definition():
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for step in (1, 2, 100):
        with torch.no_grad():
            model.weight.add_(1)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.model.weight, expected)


def test_average_of_a_training_includes_every_step_and_the_present_statistics(tiny):
    state = build_training_state(tiny(train__ema=0.9), 6)
    expected = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    state.model.train()
    for step, group in enumerate(groups(3), 1):
        state.step(group)
        for name, weight in state.model.named_parameters():
            expected[name].lerp_(weight.detach(), 1 - (1 + step) / (10 + step))
    state.step.average.copy_buffers()
    for name, weight in state.evaluated.named_parameters():
        torch.testing.assert_close(weight, expected[name])
    for own, current in zip(state.evaluated.buffers(), state.model.buffers(), strict=True):
        assert torch.equal(own, current)


@pytest.mark.parametrize("change", EACH, ids=lambda change: next(iter(change)))
def test_each_setting_changes_the_training(tiny, change: dict[str, object]):
    plain, changed = (build_training_state(tiny(**settings), 6) for settings in ({}, change))
    results = [torch.cat([w.flatten() for w in take_steps(s).evaluated.parameters()]) for s in (plain, changed)]
    assert not torch.equal(*results)


def test_defaults_leave_model_and_checkpoint_as_they_were(tiny):
    state = build_training_state(tiny(), 6)
    assert state.evaluated is state.model is state.step.model
    assert set(state.state_dict()[1]) == {"optimizer", "schedule", "scaler"}


def numbers(history: list[EpochResult]) -> list[tuple[object, ...]]:
    """All that must repeat to the last bit."""
    return [(e.epoch, e.miou, e.loss, *e.terms.values(), str(e.confusion)) for e in history]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the training with the whole recipe; `finished` fills it."""
    return tmp_path_factory.mktemp("recipe")


def finished(trained: Path, run: RunConfig) -> list[EpochResult]:
    return train(run, trained)


@pytest.mark.slow
def test_training_with_the_recipe_continues_to_the_last_bit(tiny, trained: Path, tmp_path: Path):
    expected = finished(trained, tiny(**RECIPE))
    with pytest.raises(PowerCut):
        train(tiny(**RECIPE), tmp_path, cut_after(2))
    seen: list[EpochResult] = []
    assert numbers(train(tiny(**RECIPE), tmp_path, seen.append)) == numbers(expected)
    assert [e.epoch for e in seen] == [3]
    whole, cut = (newest_checkpoint(LocalStore(folder)) for folder in (trained, tmp_path))
    assert whole is not None and cut is not None and set(whole.state) >= {"weights", "edge_head"}
    for key, weights in {"model": whole.model, "weights": whole.state["weights"], **whole.state}.items():
        if key in ("model", "weights", "edge_head"):
            others = cut.model if key == "model" else cut.state[key]
            assert all(torch.equal(weights[name], others[name]) for name in weights), key


@pytest.mark.slow
def test_average_is_what_is_evaluated_and_exported(tiny, trained: Path):
    run = tiny(**RECIPE)
    history = finished(trained, run)
    checkpoint = newest_checkpoint(LocalStore(trained))
    assert checkpoint is not None and set(checkpoint.model) == set(build_model("small", THIN_STREET).state_dict())
    names = [name for name, _ in build_model("small", THIN_STREET).named_parameters()]
    assert not all(torch.equal(checkpoint.model[name], checkpoint.state["weights"][name]) for name in names)
    frames = resident(load_splits(run.data, ("val",))["val"])
    counts = evaluate(load_trained(find_trained(str(trained))), frames).sum(0)
    assert counts.tolist() == history[-1].confusion
    stored = load_file(next(trained.glob("model-*-000003.safetensors")))
    assert set(stored) == set(names) | {name for name, _ in build_model("small", THIN_STREET).named_buffers()}


def test_trial_whose_edge_weight_is_zero_has_no_edge_head(tiny):
    assert build_training_state(tiny(loss__edge=0), 6).edge_head is None
    assert build_training_state(tiny(loss__edge=0.1), 6).edge_head is not None


def test_edge_head_needs_thin_classes(tiny, tmp_path: Path):
    labels = tmp_path / "flat.yaml"
    labels.write_text("classes: [{name: background}, {name: road, ids: [7]}]")
    message = r"loss\.edge: got 0\.2, must be 0 as data\.labels=.*flat\.yaml has no thin classes"
    with pytest.raises(ConfigError, match=message):
        tiny(loss__edge=0.2, data__labels=str(labels))


def test_edge_head_alone_is_no_loss(tiny):
    with pytest.raises(ConfigError, match="loss: every weight is 0 besides that of edge"):
        tiny(loss__cross_entropy=0, loss__ssim=0, loss__soft_iou=0, loss__edge=1)


def test_training_begun_before_a_setting_existed_continues_while_it_has_its_default(tiny, tmp_path: Path):
    LocalStore(tmp_path).put("settings.json", without_recipe(tiny()))
    check_settings(tiny(), str(tmp_path))
    with pytest.raises(ConfigError, match=r"\(train\.ema: 0\.0 there, 0\.9 now\)"):
        check_settings(tiny(train__ema=0.9), str(tmp_path))


def without_recipe(run: RunConfig) -> bytes:
    """The settings as an earlier version stored them."""
    added = {key.replace("__", ".") for key in RECIPE} - {"train.accumulation"}
    return json.dumps({key: value for key, value in run.flat().items() if key not in added}).encode()
