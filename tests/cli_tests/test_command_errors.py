"""Mistakes of the user: one line, exit code 2, fast, and nothing left in the storage."""

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_data import noise, save, stripes, write_cityscapes

from fgseg.config.errors import ConfigError
from search.execution.preflight import make_folder
from search.run import main
from search.study.identity import check_identity, differences
from search.study.plan import check_trials, make_plan
from search.study.space import Range

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]):
    """Run the command with a mistake in it; gives what it said, after checking the code and the storage."""
    storage = tmp_path / "storage"

    def call(*arguments: str, space: str = "bas") -> str:
        code = main([f"--space={space}", f"--storage={storage}", f"--set=data.cache={cache}", *arguments])
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not storage.exists()
        return error

    return call


def cityscapes(root: Path) -> list[str]:
    sets = ["data.reader=cityscapes", f"data.root={root}", "data.train=6", "data.val=3", "data.test=3"]
    return [f"--set={s}" for s in [*sets, "data.height=40", "data.width=80"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=copy_paste.probb=1"], "copy_paste.probb: no such setting; did you mean copy_paste.prob?"),
        (["--set=copy_paste.prob=1.5"], "got 1.5, must be in [0, 1]"),
        (["--set=data=3"], "--set: data: is a section, must be a mapping of settings such as data.reader"),
        (["--set=data.crop=256"], "data.crop: got 256, must be text such as 256x512 or nothing"),
        (["--set=train.lr="], "train.lr: got nothing, must be a number in (0, 1]"),
        (["--set=search.loss.ssim=3"], "search.loss.ssim: is a range; name a part, such as search.loss.ssim.high="),
        (["--set=search.trials=9"], "search.trials: is no range of bas; use the flag --trials"),
        (["--set=search.nonsense=9"], "search.nonsense: is no range of bas; ranges read search.<setting>.<part>"),
        (["--set=loss.ssim=1", "--set=search.loss.ssim.high=2"], "--set loss.ssim=... fixes the setting; give one"),
        (["--trials=0"], "--trials: got 0, must be in [1, 1000000]"),
        (["--trials=many"], "--trials: must be a whole number, got 'many'"),
        (["--max-drop=0.1"], "--max-drop: changes nothing without --keep"),
        (["--confirm-seeds=4"], "--confirm-seeds: changes nothing without --confirm"),
        (["--keep="], "--keep: no class ''; there are: fence, car"),
        (
            ["--pruner=asha", "--set=train.epochs=1"],
            "--pruner: asha stops trials between epochs, and train.epochs is 1",
        ),
        (["--tracking-uri=foo://x"], "--tracking-uri: got 'foo://x', must be an MLflow server"),
        (["--tracking-uri=127.0.0.1:5000"], "--tracking-uri: got '127.0.0.1:5000', must be an MLflow server"),
        (["--storage=s3:/bucket"], "--storage: s3:/bucket is not an address of a bucket"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--study=a/b"], "--study: got 'a/b', must be at most 100 letters"),
        (["--study=.."], "--study: got '..'"),
        (["--pruner=ahsa"], "--pruner: got 'ahsa', must be one of: none, asha, hyperband, median"),
        (["--config=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config=cityscapes"], "no such file in ./configs or in the package; did you mean cityscapes.yaml?"),
        (["--config=tests"], "tests: is a folder; name a YAML file"),
        (["--set=model.name=b9"], "model.name: no such model 'b9'"),
        (["--set=model.name=./weights"], "model.name: no folder ./weights"),
        (["--set=data.reader=cityscapes"], "data.root: got nothing, the reader cityscapes needs a folder"),
        (["--set=data.reader=cityscapes", "--set=data.root=/nowhere"], "/nowhere"),
        (["--set=train.precision=fp16", "--gpus-per-trial=0"], "train.precision: got fp16, which needs a GPU"),
        (["--gpus-per-trial=1.5"], "--gpus-per-trial: got 1.5, must be at most 1 or a whole number"),
        (["--processes-per-trial=2", "--gpus-per-trial=0.5"], "--processes-per-trial 2, --gpus-per-trial 0.5: each of"),
        (["--processes-per-trial=2", "--set=train.batch_size=3"], "train.batch_size: got 3, must be a multiple of 2"),
        (["--cpus-per-trial=9999"], "--cpus-per-trial 9999, --gpus-per-trial 0: no trial fits"),
        (["--ray-address=127.0.0.1:1"], "--ray-address: nothing answers at 127.0.0.1:1"),
        (["--ray-address=here"], "--ray-address: got 'here', must be host:port, auto or local"),
        (["--study="], "--study: got ''"),
    ],
)
def test_mistake_is_told_in_one_line(told, arguments: list[str], message: str):
    assert message in told(*arguments)


def test_unknown_space_names_the_nearest(told):
    assert "no search space 'bascp' in configs/spaces; did you mean bas_cp?" in told(space="bascp")


def test_settings_are_checked_before_the_space(told):
    assert "train.epoch: no such setting" in told("--set=train.epoch=1", space="bascp")


def test_data_are_checked_before_the_model(told, tmp_path: Path):
    assert "data.root" in told("--set=model.name=./nothing", *cityscapes(tmp_path / "missing"))


def test_checkpoint_folder_without_weights_is_told(told, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "segformer"}')
    assert "has no weights; it must hold model.safetensors" in told(f"--set=model.name={tmp_path / 'model'}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "mask2former"}', "is a model of type mask2former, must be a SegFormer"),
        ("{", "the config.json of"),
        ("[]", "the config.json of"),
    ],
)
def test_checkpoint_folder_of_another_model_is_told(told, tmp_path: Path, config: str, message: str):
    (tmp_path / "config.json").write_text(config)
    assert message in told(f"--set=model.name={tmp_path}")


def test_setting_that_is_given_twice_is_told(told, tmp_path: Path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("train:\n  epochs: 3\nloss: {ssim: 1}\ntrain:\n  lr: 1e-3\n")
    assert f"{settings}:4: train is given twice" in told(f"--config={settings}")
    settings.write_text("train: {epochs: 3}\ntrain.epochs: 4\n")
    assert "train.epochs: is given twice, dotted and in its section; keep one" in told(f"--config={settings}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=data.root=2024-13-45"], "--set data.root=2024-13-45: the value is not YAML"),
        (["--set=train.lr=&a {b: *a}"], "the value is not YAML"),
        (["--set=train.seed=2147483640"], "train.seed: got 2147483640, which every trial adds its number to"),
        (
            ["--set=data.device=gpu", "--gpus-per-trial=0"],
            "data.device: got gpu, which needs a GPU, and trials",
        ),
        (["--set=data.train=1000001"], "data.train: got 1000001, there are 1000000 streets for a split"),
        (["--study=mlartifacts"], "--study: got 'mlartifacts', which MLflow uses in a storage"),
        (["--storage=~nobody-of-this-name/runs"], "--storage: '~nobody-of-this-name/runs' is not a path"),
        (
            ["--set=data.reader=folder", "--set=data.root=~nobody-of-this-name"],
            "data.root: '~nobody-of-this-name' cannot",
        ),
    ],
)
def test_odd_mistake_is_told_in_one_line_as_well(told, arguments: list[str], message: str):
    assert message in told(*arguments)


def test_batch_size_is_not_searched_by_several_processes():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {"processes_per_trial": 2}, None)
    searched = replace(plan.space, search={**plan.space.search, "train.batch_size": Range(low=1, high=8, start=2)})
    with pytest.raises(ConfigError, match=r"train\.batch_size: is searched, but each of several processes takes"):
        check_trials(replace(plan, space=searched))


def test_terms_of_a_family_without_cross_entropy_are_a_search():
    assert (
        make_plan("bas", "configs/quickstart.yaml", {"loss.cross_entropy": 0}, {}, None).settings.loss.cross_entropy
        == 0
    )
    with pytest.raises(ConfigError, match="loss: every weight is 0"):
        make_plan("baseline", "configs/quickstart.yaml", {"loss.cross_entropy": 0}, {}, None)


def test_split_larger_than_the_data_is_told(told, tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    assert "data.val" in told(*cityscapes(root), "--set=data.val=500")


def test_label_of_another_size_is_found_while_the_cache_is_built(told, tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    label = next(root.glob("gtFine/train/*/*"))
    save(stripes()[:20], label)
    assert label.name in told(*cityscapes(root))


def test_unknown_id_is_found_with_its_file(told, tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    for label in root.glob("gtFine/val/*/*"):
        save(stripes((7, 13, 26, 21, 17, 20, 77)), label)
    error = told(*cityscapes(root))
    assert "_gtFine_labelIds.png" in error
    assert "77" in error


def test_truncated_frame_is_named(told, tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    frame = next(root.glob("leftImg8bit/train/*/*.png"))
    save(noise(1), frame)
    frame.write_bytes(frame.read_bytes()[:-200])
    assert frame.name in told(*cityscapes(root))


def test_validation_split_without_any_class_names_them(told, tmp_path: Path):
    root = write_cityscapes(tmp_path / "city")
    for label in root.glob("gtFine/val/*/*"):
        save(stripes((7, 7, 7, 7, 7, 7, 7)), label)
    assert "hold no fence, no car, no vegetation, no pole, no traffic sign, no traffic light" in told(*cityscapes(root))


@pytest.mark.parametrize("storage", ["", "what?"])
def test_storage_that_cannot_be_an_address_is_told(capsys: pytest.CaptureFixture[str], storage: str):
    assert main(["--space=bas", f"--storage={storage}"]) == 2
    assert f"--storage: got {storage!r}" in capsys.readouterr().err


def test_storage_that_cannot_be_made_is_told():
    with pytest.raises(ConfigError, match="--storage: /proc/nowhere cannot be created"):
        make_folder("/proc/nowhere")


@pytest.mark.slow
def test_damaged_ledger_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "quickstart-bas").mkdir()
    (tmp_path / "quickstart-bas" / "study.db").write_bytes(b"not a database" * 100)
    assert main(["--space=bas", f"--storage={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--list-studies", f"--storage={tmp_path}"]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_storage_that_is_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["--space=bas", f"--storage={tmp_path / 'file'}"]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_storage_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to everything
    assert main(["--space=bas", f"--storage={tmp_path}"]) == 2
    assert "is not writable" in capsys.readouterr().err


BEFORE = {"settings": {"train.epochs": 5}, "version": "0.1.0"}
NOW = {"settings": {"train.epochs": 4}, "version": "0.1.0", "data": "unknown to the first"}


def test_study_with_another_identity_shows_the_difference():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {}, "mine")
    with pytest.raises(ConfigError, match=r"study mine .*settings\.train\.epochs: 5 there, 4 now.*--accept-changes"):
        check_identity(BEFORE, NOW, plan)


def test_another_identity_passes_where_it_is_accepted():
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {"accept_changes": True}, "mine")
    check_identity(BEFORE, NOW, plan)
    assert differences(BEFORE, NOW) == "settings.train.epochs: 5 there, 4 now"


def test_setting_that_a_study_does_not_record_had_its_default():
    earlier, now = {"settings": {"train.epochs": 5}}, {"settings": {"train.epochs": 5, "train.ema": 0.0}}
    assert differences(earlier, now) == ""
    changed = {"settings": now["settings"] | {"train.ema": 0.9}}
    assert differences(earlier, changed) == "settings.train.ema: 0.0 there, 0.9 now"
    assert differences(changed, earlier) == "settings.train.ema: 0.9 there, None now"  # it is searched now


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--space=bascp"], ["--space=bas", "--set=train.lr=x"], ["--space=bas", "--set=model.name=b9"]],
)
@pytest.mark.slow
def test_help_and_mistakes_answer_fast_without_torch_or_ray(tmp_path: Path, arguments: list[str]):
    code = (
        "import sys\nfrom search.run import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules), sorted(sys.modules)"
    )
    libraries = "import numpy, optuna, pydantic, rich.console, sqlalchemy.orm"  # the light ones of every command
    assert processor_s(code, *arguments, f"--storage={tmp_path}") < 3 * processor_s(libraries)


def processor_s(code: str, *arguments: str) -> float:
    """Return the processor time of a fresh interpreter in seconds; other processes of the machine hardly change it."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_commands_run_the_garbage_collector_seldom():
    gc.set_threshold(700)
    assert main(["--list"]) == 0
    assert gc.get_threshold()[0] == 50_000
