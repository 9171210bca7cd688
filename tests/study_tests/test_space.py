"""Search spaces: those that ship, and the words in which mistakes in one are told."""

from pathlib import Path

import pytest

from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.config.settings import DataConfig, RunConfig
from search.study.identity import differences
from search.study.plan import make_plan
from search.study.space import Range, Space, add_ranges, list_spaces, load_space, override

THIN = ("fence", "pole", "traffic_sign", "traffic_light")


@pytest.fixture
def write_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write ./configs/spaces/mine.yaml in a folder of its own and go there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "spaces").mkdir(parents=True)
    return (tmp_path / "configs" / "spaces" / "mine.yaml").write_text


def test_the_four_families_ship_with_baseline_first():
    shipped = list(list_spaces())
    assert shipped[0] == "baseline"
    assert {"bas", "bas_cp", "slc"} < set(shipped)


@pytest.mark.parametrize("name", ["all", "baseline", "bas", "bas_cp", "bas_ctx", "bas_edge", "rare", "slc"])
def test_every_shipped_space_searches_the_thin_classes(name: str):
    space = load_space(name, DataConfig())
    ranges = [space.search[f"class_weights.{key}"] for key in THIN]
    assert all((r.low, r.high, r.log) == (0.5, 10, True) for r in ranges)


def test_start_points_are_those_of_the_source():
    bas, slc = load_space("bas", DataConfig()), load_space("slc", DataConfig())
    assert (bas.fixed["loss.cross_entropy"], bas.start["loss.ssim"], bas.start["loss.soft_iou"]) == (1, 0.4, 0.5)
    assert (slc.fixed["loss.cross_entropy"], slc.start["loss.ssim"], slc.start["loss.lovasz"]) == (1.1, 0.5, 0.5)
    assert [slc.start[f"class_weights.{key}"] for key in THIN] == [5, 5, 5, 2]
    assert load_space("bas_cp", DataConfig()).start["copy_paste.prob"] == slc.start["copy_paste.prob"] == 0.5


@pytest.mark.parametrize("name", ["baseline", "bas", "bas_cp", "slc"])
def test_searched_names_of_the_default_label_set_and_their_order_stay(name: str):
    """Samplers and recorded studies depend on both."""
    before = {"baseline": (), "bas": ("ssim", "soft_iou"), "bas_cp": ("ssim", "soft_iou"), "slc": ("ssim", "lovasz")}
    after = ("copy_paste.prob",) if name in ("bas_cp", "slc") else ()
    weights = (f"class_weights.{key}" for key in THIN)
    expected = [*(f"loss.{term}" for term in before[name]), *weights, *after]
    assert list(load_space(name, DataConfig()).search) == expected


def test_families_search_the_thin_classes_of_any_label_set():
    space = load_space("slc", DataConfig(labels="cityscapes19"))
    keys = [key for key in space.search if key.startswith("class_weights.")]
    assert keys == [f"class_weights.{key}" for key in ("fence", "pole", "traffic_light", "traffic_sign")]
    assert [space.start[key] for key in keys] == [5, 5, 2, 5]


def test_entry_of_a_class_that_only_other_label_sets_have_is_left_out(write_space, tmp_path: Path):
    thin = "{low: 1, high: 5, start: 1}"
    write_space(f"title: Mine\nsearch:\n  class_weights.<thin>: {thin}\n  class_weights.traffic_light: {thin}\n")
    (tmp_path / "own.yaml").write_text("classes: [{name: rest}, {name: kerb, thin: true}, {name: lawn}]")
    assert list(load_space("mine", DataConfig(labels="own.yaml")).search) == ["class_weights.kerb"]
    write_space("title: Mine\nsearch: {class_weights.krb: {low: 1, high: 5, start: 1}}\n")
    with pytest.raises(ConfigError, match=r"class_weights\.krb: no such setting; did you mean class_weights\.kerb\?"):
        load_space("mine", DataConfig(labels="own.yaml"))


def test_range_of_all_thin_classes_is_changed_at_once():
    space, _ = changed({"search.class_weights.<thin>.high": 5})
    assert {space.search[f"class_weights.{key}"].high for key in THIN} == {5}


def test_drop_path_is_searched_although_its_default_is_nothing(write_space):
    write_space("title: Mine\nsearch:\n  model.drop_path: {low: 0, high: 0.3, start: 0.1}\n")
    assert load_space("mine", DataConfig()).start == {"model.drop_path": 0.1}
    write_space("title: Mine\nsearch:\n  model.drop_path: {low: 0, high: 1.5, start: 0.1}\n")
    with pytest.raises(ConfigError, match=r"model\.drop_path: got 1\.5, must be in \[0, 1\)"):
        load_space("mine", DataConfig())


def test_space_typo_names_the_nearest_space():
    with pytest.raises(ConfigError, match=r"no search space 'bascp' in configs/spaces; did you mean bas_cp\?"):
        load_space("bascp", DataConfig())


def test_new_family_needs_one_file_only(write_space):
    write_space("title: Mine\nsearch:\n  train.lr: {low: 1e-5, high: 1e-3, log: true, start: 6e-5}\n")
    assert load_space("mine", DataConfig()).start == {"train.lr": 6e-5}
    assert set(load_space("mine", DataConfig()).search) == {"train.lr"}


def test_whole_number_setting_is_searched_in_whole_numbers(write_space):
    write_space("title: Mine\nsearch:\n  train.batch_size: {low: 1, high: 4, start: 2}\n")
    assert type(load_space("mine", DataConfig()).start["train.batch_size"]) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {loss.sim: {low: 1, high: 2, start: 1}}", "loss.sim: no such setting; did you mean loss.ssim?"),
        ("search: {loss.ssim: {low: 3, high: 2, start: 2}}", "low must be below high"),
        ("search: {loss.ssim: {low: 1, high: 2, start: 5}}", "got 5, must be in [1, 2]"),
        ("search: {loss.ssim: {low: 0, high: 2, log: true, start: 1}}", "must be above 0 where log is true"),
        ("search: {copy_paste.prob: {low: 0, high: 2, start: 1}}", "copy_paste.prob: got 2.0, must be in [0, 1]"),
        ("search: {train.select: {low: 0, high: 2, start: 1}}", "only numbers can be searched"),
        ("search: {loss.ssim: {low: x, high: 2, start: 1}}", "search.loss.ssim.low: got 'x', must be a number"),
        ("search: {train.epochs: {low: 1, high: 9, start: 2}}", "trials that differ in it cannot be compared"),
        ("search: {data.height: {low: 64, high: 99, start: 64}}", "trials that differ in it cannot be compared"),
        ("search: {data.train: {low: 64, high: 99, start: 64}}", "trials that differ in it cannot be compared"),
        ("search: {loss.ssim: {low: 1, high: 2, start: 1, off_below: 1}}", "off_below: got 1, must be in (1, 2]"),
        ("search: {loss.ssim: {low: 1, high: 2, start: 0}}", "start: got 0, must be in [1, 2]"),
        ("search: {train.lr: {low: 1e-5, high: 1e-3, start: 0, off_below: 1e-4}}", "train.lr: got 0.0, must be in (0"),
        ("search: {train.batch_size: {low: 1.5, high: 4, start: 2}}", "must be whole numbers"),
        ("fixed: {loss.sim: 1}", "loss.sim: no such setting"),
        ("searched: {}", "searched: no such setting"),
    ],
)
def test_mistake_in_a_space_is_told_with_its_file(write_space, text: str, message: str):
    write_space(f"title: Mine\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_space("mine", DataConfig())
    assert "mine.yaml" in str(caught.value)
    assert message in str(caught.value)


def changed(assignments: dict[str, object]) -> tuple[Space, dict[str, object]]:
    return override(load_space("bas_cp", DataConfig()), assignments, DataConfig())


def test_setting_a_searched_value_takes_it_out_of_the_space():
    space, plain = changed({"loss.ssim": 1, "train.epochs": 2})
    assert "loss.ssim" not in space.search
    assert plain == {"loss.ssim": 1, "train.epochs": 2}


def test_setting_a_fixed_value_replaces_it():
    space, plain = changed({"loss.cross_entropy": 2})
    assert space.fixed == {}
    assert plain == {"loss.cross_entropy": 2}


def test_range_is_changed_by_its_dotted_name():
    space, plain = changed({"search.loss.ssim.low": 0.1, "search.loss.ssim.high": 1})
    assert (space.search["loss.ssim"].low, space.search["loss.ssim"].high, plain) == (0.1, 1, {})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ({"search.loss.sim.low": 1}, "loss.sim is not searched by bas_cp; did you mean loss.ssim?"),
        ({"search.loss.ssim.lo": 1}, "a range has no lo; did you mean low?"),
        ({"search.loss.ssim.low": "x"}, "--set search.loss.ssim.low: got 'x', must be a number"),
        ({"search.loss.ssim.low": 9}, "low must be below high"),
    ],
)
def test_mistake_in_a_changed_range_is_told(assignment: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        changed(assignment)
    assert message in str(caught.value)


def test_family_all_can_switch_every_term_off_and_starts_at_that_of_bas():
    space, bas = load_space("all", DataConfig()), load_space("bas", DataConfig())
    terms = {"loss.ssim", "loss.soft_iou", "loss.lovasz", "loss.edge"}
    sampling = {"loss.hard_pixels", "data.rare_class_temperature", "copy_paste.prob", "augment.colour"}
    assert set(space.off_below) == terms | sampling
    assert {key: value for key, value in space.start.items() if value and key != "augment.scale"} == bas.start
    assert space.start["augment.scale"] == RunConfig().augment.scale
    build([Layer("off", space.fixed | dict.fromkeys(space.off_below, 0))])


def test_family_in_context_pastes_objects_of_all_classes_but_fences():
    space = load_space("bas_ctx", DataConfig())
    run = build([Layer("bas_ctx", {**space.fixed, **space.start})])
    assert run.copy_paste.needs_components and run.copy_paste.excluded == ("fence",)
    assert set(space.search) == set(load_space("bas_cp", DataConfig()).search)


def test_class_that_is_never_pasted_must_be_in_the_label_set_or_in_a_shipped_one():
    build([Layer("other", {"data.labels": "cityscapes19", "copy_paste.without": "fence, bicycle"})])
    build([Layer("family", {"copy_paste.without": "bicycle"})])
    with pytest.raises(ConfigError, match=r"copy_paste.without: no class 'fense' in data.labels=thin_street; did you"):
        build([Layer("typo", {"copy_paste.without": "car, fense"})])


OFF = "title: Mine\nsearch:\n  loss.ssim: {low: 0.01, high: 5, log: true, start: 0, off_below: 0.05}\n"


def test_value_below_the_limit_switches_a_setting_off(write_space):
    write_space(OFF)
    space = load_space("mine", DataConfig())
    assert space.start == {"loss.ssim": 0} and space.off_below == {"loss.ssim": 0.05}
    assert [space.value("loss.ssim", number) for number in (0.01, 0.0499, 0.05, 5)] == [0, 0, 0.05, 5]
    r = space.search["loss.ssim"]
    assert [r.contains(value) for value in (0, 0.05, 5, 6)] == [True, True, True, False]
    assert (r.position(0), r.position(0.3)) == (0.01, 0.3)


def test_sampling_of_frames_can_be_searched_unlike_the_other_settings_of_the_data(write_space):
    write_space("title: Mine\nsearch: {data.rare_class_temperature: {low: 0.01, high: 1, log: true, start: 0.1}}\n")
    assert load_space("mine", DataConfig()).start == {"data.rare_class_temperature": 0.1}


LR = {"train.lr": {"low": 1e-5, "high": 3e-4, "log": True, "start": 6e-5}}


@pytest.mark.parametrize("ranges", [LR, {"train": {"lr": LR["train.lr"]}}])
def test_config_adds_searched_settings_to_every_family(ranges: dict[str, object]):
    for name in ("baseline", "slc"):
        family = load_space(name, DataConfig())
        space = add_ranges(family, ranges, DataConfig(), "c.yaml")
        assert list(space.search) == [*family.search, "train.lr"]
        assert space.start == family.start | {"train.lr": 6e-5}
        assert family == load_space(name, DataConfig())


def test_range_of_a_config_replaces_that_of_the_family_and_its_fixed_value():
    low = {"low": 0.1, "high": 2, "start": 1}
    space = add_ranges(
        load_space("bas", DataConfig()), {"loss.cross_entropy": low, "loss.ssim": low}, DataConfig(), "c.yaml"
    )
    assert "loss.cross_entropy" not in space.fixed
    assert space.search["loss.cross_entropy"] == space.search["loss.ssim"] == Range(**low)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (3, "c.yaml: search.space: got 3, must be a mapping of settings to ranges"),
        ({"train.lrr": LR["train.lr"]}, "c.yaml: search.space.train.lrr: no such setting; did you mean train.lr?"),
        (
            {"train.lr": {"low": 1e-5, "high": 2, "start": 1}},
            "c.yaml: search.space (high): train.lr: got 2.0, must be in",
        ),
        ({"train.lr": {"low": 3, "high": 2, "start": 1}}, "c.yaml: search.space.train.lr: got low 3 and high 2"),
        (
            {"train.lr": {"low": "x", "high": 2, "start": 1}},
            "c.yaml: search.space.train.lr.low: got 'x', must be a num",
        ),
        ({"data.height": {"low": 64, "high": 128, "start": 64}}, "search.space.data.height: trials that differ in it"),
    ],
)
def test_mistake_in_the_ranges_of_a_config_is_told_with_its_file(ranges: object, message: str):
    with pytest.raises(ConfigError) as caught:
        add_ranges(load_space("bas", DataConfig()), ranges, DataConfig(), "c.yaml")
    assert message in str(caught.value)


def test_config_may_search_the_weights_of_the_thin_classes():
    family = load_space("bas", DataConfig())
    space = add_ranges(family, {"class_weights.<thin>": {"low": 1, "high": 4, "start": 2}}, DataConfig(), "c.yaml")
    assert list(space.search) == list(family.search)
    assert [space.search[f"class_weights.{key}"].high for key in THIN] == [4] * 4


def test_flags_change_the_ranges_of_a_config_and_the_identity_has_the_result(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text("search: {trials: 3, space: {train.lr: {low: 1.0e-5, high: 3.0e-4, log: true, start: 6.0e-5}}}\n")
    flags = {"search.train.lr.high": 1e-3, "search.loss.ssim.high": 0.9}
    plan = make_plan("bas", str(config), flags, {}, None)
    ranges = plan.identity["space"]["search"]
    assert (ranges["train.lr"]["high"], ranges["loss.ssim"]["high"], plan.search.trials) == (1e-3, 0.9, 3)
    assert plan.settings.train.lr == 6e-5 and "train.lr" not in plan.identity["settings"]
    fixed = make_plan("bas", str(config), {"train.lr": 1e-4}, {}, None)
    assert "train.lr" not in fixed.space.search and fixed.settings.train.lr == 1e-4


def test_range_without_a_limit_is_that_of_a_study_of_an_earlier_version():
    now = load_space("bas", DataConfig()).to_json()
    before = {
        "name": "bas",
        "search": {k: {n: v for n, v in r.items() if n != "off_below"} for k, r in now["search"].items()},
    }
    assert differences({"space": before}, {"space": now}) == ""
