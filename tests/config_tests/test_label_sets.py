"""Label sets: those that ship, and the words in which mistakes in one are told."""

from pathlib import Path

import pytest

from fgseg.config.errors import ConfigError
from fgseg.config.files import list_configs
from fgseg.config.label_sets import label_set_of, load_label_set, portable_name
from fgseg.labels import VOID, cityscapes_table


def test_default_set_is_that_of_the_source():
    classes = load_label_set("thin_street")
    assert [c.key for c in classes.classes] == [
        "background", "fence", "car", "vegetation", "pole", "traffic_sign", "traffic_light",
    ]  # fmt: skip
    assert [c.ids for c in classes.classes] == [(), (13,), (26,), (21,), (17,), (20,), (19,)]
    assert [c.key for c in classes.thin] == ["fence", "pole", "traffic_sign", "traffic_light"]
    assert classes.foreground == classes.classes[1:] and classes.num_classes == 7
    assert list(classes.foreground_labels) == [c.label for c in classes.foreground]


@pytest.mark.parametrize("name", list_configs("labels"))
def test_shipped_sets_are_read_and_their_colours_differ(name: str):
    classes = load_label_set(name)
    assert classes.name == name and len({c.colour for c in classes.classes}) == classes.num_classes
    assert label_set_of(classes.id2label.values()) == classes


def test_cityscapes19_has_the_train_ids_and_colours_of_cityscapes():
    from cityscapesscripts.helpers.labels import labels

    evaluated = sorted((each for each in labels if not each.ignoreInEval), key=lambda each: each.trainId)
    classes = load_label_set("cityscapes19")
    found = [(c.label, c.name, c.ids, c.colour) for c in classes.classes]
    assert found == [(each.trainId, each.name, (each.id,), each.color) for each in evaluated]
    table = cityscapes_table(classes, "background")
    assert {number for number, label in table.items() if label == VOID} == {e.id for e in labels if e.ignoreInEval}


def test_streets_have_cityscapes_names_for_their_ids():
    from cityscapesscripts.helpers.labels import id2label

    assert all(id2label[i].name == c.name for c in load_label_set("streets").classes for i in c.ids)


def test_class_without_a_colour_gets_one_and_names_become_keys(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("classes: [{name: rest}, {name: Lane Marking - General}, {name: kerb}]")
    classes = load_label_set(str(tmp_path / "own.yaml"))
    assert (classes.name, [c.key for c in classes.classes]) == ("own", ["rest", "lane_marking_general", "kerb"])
    assert len({c.colour for c in classes.classes}) == 3


def test_name_for_another_folder_is_absolute_unless_it_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "labels").mkdir(parents=True)
    (tmp_path / "configs" / "labels" / "mine.yaml").write_text("classes: [{name: rest}, {name: kerb}]")
    assert portable_name("thin_street") == "thin_street"
    assert portable_name("mine") == str(tmp_path / "configs" / "labels" / "mine.yaml")


def test_file_that_changes_is_read_again(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("classes: [{name: rest}, {name: kerb}]")
    first = load_label_set(str(path))
    path.write_text("classes: [{name: rest}, {name: kerb}, {name: lawn}]")
    assert load_label_set(str(path)).num_classes == first.num_classes + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: []", "classes: got 0 classes, must be a list of 2 to 255 classes, as in `classes:"),
        ("classes: [{name: road}]", "got 1 classes, must be a list of 2 to 255"),
        ("class: []", "class: no such field; did you mean classes?"),
        ("background: 1", "background: got 1, must be true or false"),
        ("classes: [{name: a}, {name: b, color: [1, 2, 3]}]", "classes: b: color: no such field; did you mean colour?"),
        (
            "classes: [{name: a}, {name: b, colour: [1, 2]}]",
            "colour: got [1, 2], must be three whole numbers in",
        ),
        ("classes: [{name: a}, {name: b, colour: [1, 2, 256]}]", "must be three whole numbers in [0, 255]"),
        ("classes: [{name: a}, {name: b, ids: 7}]", "classes: b: ids: got 7, must be a list of whole numbers"),
        ("classes: [{name: a}, {name: b, thin: 1}]", "classes: b: thin: got 1, must be true or false"),
        ("classes: [{name: a}, {thin: true}]", "classes: entry 2: name: got None, must be a name"),
        ("classes: [{name: a}, b]", "classes: entry 2 is 'b', must be a mapping such as {name: pole}"),
        ("classes: [{name: a}, {name: b c}, {name: B-c}]", "the name b_c is given twice"),
        ("classes: [{name: a}, {name: b, ids: [1]}, {name: c, ids: [1]}]", "the id 1 is given twice"),
        ("classes: [{name: a}, {name: b, aliases: [C]}, {name: c}]", "b has the alias C, which is another name of c"),
        ("classes: [{name: a}, {name: b, aliases: [d e]}, {name: c, aliases: [D-E]}]", "which is another name of b"),
        ("classes: [{name: a, ids: [1]}, {name: b}]", "a has ids, but the first class holds every id without a class"),
        ("classes: [{name: a}, {name: void}]", "void cannot be a class"),
    ],
)
def test_mistake_in_a_label_set_is_told_with_its_file(tmp_path: Path, text: str, message: str):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_label_set(str(tmp_path / "own.yaml"))
    assert str(caught.value).startswith(f"{tmp_path / 'own.yaml'}: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_label_set_names_the_nearest():
    with pytest.raises(ConfigError, match=r"data\.labels: no label set 'streats' .*; did you mean streets\?"):
        load_label_set("streats")
