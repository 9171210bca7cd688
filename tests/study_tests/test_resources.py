"""How a machine is shared among trials."""

import pytest

from fgseg.config.errors import ConfigError
from search.study.config import SearchConfig
from search.study.plan import absolute
from search.study.resources import Node, share, share_cluster


@pytest.mark.parametrize(
    ("search", "cores", "cards", "expected"),
    [
        ({}, 2, 0, (0, 2, 1)),
        ({}, 16, 1, (1, 1, 16)),
        ({"gpus_per_trial": 0.25, "cpus_per_trial": 2}, 16, 1, (0.25, 4, 4)),
        ({"gpus_per_trial": 0}, 4, 1, (0, 4, 1)),
        ({"max_concurrent": 2}, 8, 0, (0, 2, 4)),
        ({"trials": 1}, 8, 0, (0, 1, 8)),
    ],
)
def test_gpus_concurrent_trials_and_threads(search: dict, cores: int, cards: int, expected: tuple):
    given = share(SearchConfig(**search), cores, cards)
    assert (given.gpus, given.concurrent, given.threads) == expected


@pytest.mark.parametrize(
    ("search", "cores", "cards", "expected"),
    [
        ({"processes_per_trial": 2}, 2, 0, (2, 0, 1, 1, 2)),
        ({"processes_per_trial": 2}, 8, 4, (2, 2, 2, 2, 2)),
        ({"gpus_per_trial": 2}, 32, 4, (2, 2, 2, 8, 2)),
        ({"gpus_per_trial": 4, "cpus_per_trial": 16}, 32, 8, (16, 4, 2, 4, 4)),
        ({"gpus_per_trial": 1}, 8, 4, (1, 1, 4, 2, 1)),
    ],
)
def test_processes_share_what_their_trial_gets(search: dict, cores: int, cards: int, expected: tuple):
    given = share(SearchConfig(**search), cores, cards)
    assert (given.cpus, given.gpus, given.concurrent, given.threads, given.processes) == expected


def test_processes_of_a_trial_must_fit_on_one_node():
    nodes = [Node(str(n), "", 0, "", 4, 2) for n in range(3)]
    assert share_cluster(SearchConfig(gpus_per_trial=2), nodes).processes == 2
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 4, --processes-per-trial 4: no trial fits, the largest"):
        share_cluster(SearchConfig(gpus_per_trial=4), nodes)


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"train\.precision: got fp16, which needs a GPU"):
        share(SearchConfig(), 4, 0, "train.precision: got fp16")


def test_folder_named_like_a_variant_does_not_hide_it(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    settings = {"data.root": None, "data.cache": None, "data.labels": "thin_street", "model.name": "small"}
    assert absolute(settings) == settings


def test_relative_paths_are_made_absolute_for_workers(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    relative = {"data.root": "frames", "data.cache": "cache", "data.labels": "thin_street", "model.name": "b0"}
    settings = absolute(relative)
    assert (settings["data.root"], settings["data.cache"]) == (str(tmp_path / "frames"), str(tmp_path / "cache"))
