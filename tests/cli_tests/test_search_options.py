"""Flags of the search commands, generated from SearchConfig."""

import argparse

import pytest

from search.cli.options import FLAGS, LOCATION, add_location_options, add_search_options, location_from, search_settings
from search.run import parse
from search.study.config import SearchConfig


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every option of a parser by the setting that it changes."""
    return {action.dest: action for action in parser._actions if action.dest != "help"}


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_search_options(parser)
    return parser


def test_every_setting_of_the_search_has_a_flag_named_after_it(parser: argparse.ArgumentParser):
    expected = {name: [FLAGS.get(name, f"--{name.replace('_', '-')}")] for name in SearchConfig.model_fields}
    assert {name: action.option_strings for name, action in flags(parser).items()} == expected


def test_the_help_text_of_a_flag_is_the_docstring_and_the_default(parser: argparse.ArgumentParser):
    help_texts = {name: action.help for name, action in flags(parser).items()}
    assert help_texts["max_failures"] == "restarts of a trial whose process died (default: 2)"
    assert help_texts["cpus_per_trial"].startswith("CPU cores reserved for a trial;")
    assert help_texts["pruner"].startswith(
        "none, asha, hyperband, median, wilcoxon, first-epochs, short-full: method that stops"
    )
    assert help_texts["register_model"].startswith("do not register the best trial's model")


def test_flags_carry_the_types_of_their_settings():
    words = "--trials 3 --gpus-per-trial 0.5 --on-oom halve --no-register --accept-changes"
    options = parse(words.split())
    given = {name: value for name, value in search_settings(options).items() if value is not None}
    assert given == {
        "trials": 3,
        "gpus_per_trial": 0.5,
        "on_oom": "halve",
        "register_model": False,
        "accept_changes": True,
    }


def test_flags_that_are_not_given_are_none_so_that_the_file_decides():
    assert set(search_settings(parse([])).values()) == {None}


def test_a_command_may_leave_settings_out():
    parser = argparse.ArgumentParser()
    add_search_options(parser, without=("trials", "sampler"))
    assert SearchConfig.model_fields.keys() - flags(parser).keys() == {"trials", "sampler"}


def test_a_study_is_located_by_its_name_in_the_default_storage(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_location_options(parser)
    assert flags(parser).keys() == {"study", *LOCATION}
    location = location_from(parser.parse_args(["--study", "s"]))
    assert (location.study, location.storage) == ("s", str(tmp_path / "runs"))
