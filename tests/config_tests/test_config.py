"""Settings: their names, ranges and sources, and the words in which mistakes are told."""

from pathlib import Path

import pytest
from thin_street import CLASSES

from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build, parse_assignments, read_layer
from fgseg.config.settings import RunConfig, flatten, nest


def told(*assignments: str) -> str:
    """The message for a mistake made with --set."""
    with pytest.raises(ConfigError) as caught:
        build([Layer("--set", parse_assignments(assignments))])
    return str(caught.value)


def test_unknown_setting_names_the_nearest_one():
    assert told("copy_paste.probb=1") == "--set: copy_paste.probb: no such setting; did you mean copy_paste.prob?"


def test_value_out_of_range_tells_the_range():
    assert told("copy_paste.prob=1.5") == "--set: copy_paste.prob: got 1.5, must be in [0, 1]"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lr=abc", "got 'abc', must be a number in (0, 1]"),
        ("train.epochs=1.5", "got 1.5, must be a whole number at least 1"),
        ("train.epochs=yes", "got True, must be a whole number at least 1"),
        ("train.select=bst", "got 'bst', must be one of: last, best"),
        ("train.lr=.nan", "got nan, must be a number in (0, 1]"),
        ("data.root=[1]", "got [1], must be text or nothing"),
        ("train.epochs=0", "got 0, must be at least 1"),
    ],
)
def test_wrong_value_tells_what_holds(assignment: str, message: str):
    assert told(assignment).endswith(message)


def test_scientific_notation_without_a_dot_is_a_number():
    assert build([Layer("--set", parse_assignments(["train.lr=6e-5"]))]).train.lr == 6e-5


@pytest.mark.parametrize("text", ["no", "'no'", "bf16"])
def test_word_that_yaml_reads_as_a_truth_value_is_the_word(text: str):
    run = build([Layer("--set", parse_assignments([f"train.precision={text}"]))])
    assert run.train.precision == text.strip("'")


def test_later_layers_win_and_errors_name_their_layer(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {epochs: 3, lr: 2}\nsearch: {trials: 4}\n")
    layer = read_layer(file, skip="search")
    with pytest.raises(ConfigError, match=r"a\.yaml: train\.lr: got 2, must be in \(0, 1\]"):
        build([layer])
    assert build([layer, Layer("--set", {"train.lr": 0.1})]).train.epochs == 3


def test_broken_yaml_names_file_and_line(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  epochs: [3\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: "):
        read_layer(file)


def test_assignment_without_equals_sign_is_told():
    with pytest.raises(ConfigError, match="must read key=value"):
        parse_assignments(["train.epochs"])


def test_flatten_and_nest_are_inverses():
    nested = RunConfig().model_dump()
    assert nest(flatten(nested)) == nested


def test_loss_without_any_term_is_refused():
    assert told("loss.cross_entropy=0").startswith("loss: every weight is 0")


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("64", "data.crop: got 64, must read HEIGHTxWIDTH in pixels, such as --set data.crop=128x256"),
        ("64x-3", "data.crop: got 64x-3, must read HEIGHTxWIDTH"),
        ("64x512", "data.crop: got 64x512, its sides must be at least 32 and at most those of the frames, 128x256"),
        ("16x64", "data.crop: got 16x64, its sides must be at least 32"),
        ("66x64", "data.crop: got 66x64 of frames of 128x256, every side must be a multiple of 4"),
    ],
)
def test_crop_that_cannot_be_cut_is_told(crop: str, message: str):
    assert told(f"data.crop='{crop}'").startswith(message)


def test_crop_reads_as_height_and_width_and_may_be_the_whole_frame():
    for crop, window in (("64x96", (64, 96)), ("128x256", (128, 256)), ("null", None)):
        assert build([Layer("--set", parse_assignments([f"data.crop={crop}"]))]).data.window == window


def test_class_weights_stand_in_the_order_of_the_labels():

    assert list(RunConfig().class_weights) == [c.key for c in CLASSES]


def test_class_weight_of_another_label_set_is_checked_against_it():
    run = build([Layer("--set", {"data.labels": "cityscapes19", "class_weights.rider": 2})])
    assert (run.class_weights["rider"], run.class_weights["road"], len(run.class_weights)) == (2, 1, 19)
    assert told("class_weights.rider=2").startswith("--set: class_weights.rider: no such setting; ")
    assert told("class_weights.pol=2") == "--set: class_weights.pol: no such setting; did you mean class_weights.pole?"
    assert told("class_weights.pole=0") == "--set: class_weights.pole: got 0, must be above 0"
    assert told("class_weights.pole=x") == "--set: class_weights.pole: got 'x', must be a number above 0"


def test_loss_weights_are_those_of_the_loss_terms():
    from fgseg.losses import TERMS

    assert set(RunConfig().loss.weights) == {*TERMS, "edge"}
