"""The configuration files that ship."""

import math
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from conftest import absent

from fgseg.config.files import list_configs, read_yaml
from fgseg.config.loading import Layer, build, read_layer
from fgseg.config.settings import DataConfig
from search.ledger.records import TrialAttempt
from search.run import main
from search.study.plan import make_plan
from search.study.space import list_spaces, load_space

ROOT = Path(__file__).parents[2]
SHIPPED = {path.stem for path in (ROOT / "configs" / "spaces").glob("*.yaml")}
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "accelerate")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("space", sorted(SHIPPED))
def test_every_shipped_config_works_with_every_family(path: Path, space: str):
    plan = make_plan(space, str(path), {"data.root": "somewhere"}, {}, None)
    assert plan.study == f"{path.stem}-{space}"
    assert plan.settings.loss.cross_entropy == (1.1 if space == "slc" else 1.0)


def test_cityscapes_config_is_the_protocol_of_the_source():
    run = build([read_layer(ROOT / "configs" / "cityscapes.yaml", skip="search"), Layer("test", {"data.root": "x"})])
    assert (run.data.height, run.data.width) == (512, 1024)
    assert (run.data.train, run.data.val, run.data.test, run.data.void) == (2000, 250, 250, "background")
    assert (run.model.name, run.model.head) == ("nvidia/segformer-b0-finetuned-cityscapes-512-1024", "new")
    train = run.train
    assert (train.lr, train.epochs, train.batch_size, train.accumulation) == (6e-5, 15, 2, 1)
    assert (train.clip, train.precision, train.select, train.seed) == (1.0, "auto", "last", 42)
    recipe = {
        **{"train.head_lr_factor": 1, "train.warmup": 0, "train.weight_decay": 0, "train.ema": 0},
        **{"augment.flip_prob": 0, "augment.scale": 1, "augment.colour": 0, "model.drop_path": None},
        **{"data.crop": None, "data.rare_class_temperature": 0},
        **{"loss.edge": 0, "loss.hard_pixels": 0, "loss.soft_iou_over": "image"},
    }
    assert {name: run.flat()[name] for name in recipe} == recipe


def test_finetuning_searches_the_learning_rates_beside_every_family():
    plan = make_plan("bas", "configs/finetune.yaml", {"data.root": "somewhere"}, {}, None)
    assert list(plan.space.search)[-2:] == ["train.lr", "train.head_lr_factor"]
    assert plan.space.start["class_weights.pole"] == 2.5
    run = plan.settings
    assert (run.train.epochs, run.train.lr, run.train.head_lr_factor) == (5, 6e-5, 1)
    assert min(run.train.ema, run.train.warmup, run.augment.flip_prob, run.augment.scale - 1) > 0


def test_quickstart_is_the_default_and_needs_no_data():
    section = read_yaml(ROOT / "configs" / "quickstart.yaml")
    assert section["data"]["reader"] == "streets"
    assert section["search"]["trials"] == 8


def test_own_configs_win_over_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert set(list_spaces()) == SHIPPED
    own = tmp_path / "configs" / "spaces" / "bas.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("title: Mine\nsearch: {}\n")
    assert list_configs("spaces")["bas"].resolve() == own
    assert set(list_spaces()) == SHIPPED


def test_trial_n_trains_with_the_seed_plus_n():
    plan = make_plan("bas", "configs/quickstart.yaml", {"train.seed": 100}, {}, None)
    asks = [TrialAttempt(number, 1, plan.space.start) for number in (0, 1, 7)]
    assert [plan.trial_settings(ask)["train.seed"] for ask in asks] == [100, 101, 107]


def test_identity_leaves_out_where_the_data_lie_and_keeps_everything_else():
    def identity(**settings: object) -> dict[str, object]:
        return make_plan(
            "bas", "configs/quickstart.yaml", {k.replace("__", "."): v for k, v in settings.items()}, {}, None
        ).identity

    assert identity(data__root="a", data__cache="b") == identity(data__root="c")
    assert identity(train__epochs=9) != identity()
    assert "data.labels" not in identity()["settings"]  # studies of earlier versions have none
    assert identity(data__labels="streets") != identity()
    assert not any(isinstance(v, float) and math.isnan(v) for v in identity().values())


def test_installed_package_ships_its_configs(tmp_path: Path):
    try:
        distribution("fgsearch")
    except PackageNotFoundError:
        absent("fgsearch is not installed here, only its checkout is used")
    code = "from search.study.space import list_spaces; print(*(p for p in list_spaces().values()), sep='\\n')"
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=own, capture_output=True, text=True, check=True
    )
    assert {Path(line).stem for line in shown.stdout.split()} == SHIPPED
    assert all("site-packages" in line for line in shown.stdout.split())


def test_dry_run_shows_what_would_run_and_masks_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uri = "http://someone:very-secret@127.0.0.1:5000"
    small = [word for s in ("train=4", "val=2", f"cache={tmp_path}/cache") for word in ("--set", f"data.{s}")]
    assert main(["--space=bas", "--dry-run", f"--storage={tmp_path / 'runs'}", f"--tracking-uri={uri}", *small]) == 0
    shown = capsys.readouterr().out
    assert "8 new trials; the study does not exist yet" in shown
    assert "loss.ssim" in shown
    assert "very-secret" not in shown
    assert not (tmp_path / "runs").exists()


def test_list_shows_every_space_with_its_title(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(load_space(name, DataConfig()).title in shown for name in list_spaces())
