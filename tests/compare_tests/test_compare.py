"""search.compare: figures from counts, pages, mistakes, and one real comparison that is killed and continued."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_epoch, make_untrained
from kept_study import change
from thin_street import THIN_STREET

from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.config.settings import DataConfig
from fgseg.metrics.boundary_iou import boundary_iou
from fgseg.metrics.iou import class_iou, miou
from fgseg.storage.store import LocalStore, open_store
from search.audit.trials import audit
from search.cli.signals import Signals
from search.compare import runner
from search.compare.__main__ import main
from search.compare.plans import plans_from
from search.compare.runner import budgets, untrained_checkpoint
from search.compare.scores import MEAN, THIN_MEAN, Family, Scorer, compare
from search.compare.tables import render_comparison
from search.console.documents import ComparisonPlanDocument
from search.execution.strategies import strategy_of
from search.ledger.catalog import open_ledger
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.ledger.trial_source import FixedTrials
from search.study.location import find_location
from search.study.plan import RepeatPlan, make_plan
from search.study.space import load_space
from search.tracking.client import open_client

pytestmark = pytest.mark.slow

CONFIG = "configs/quickstart.yaml"
KEYS = tuple(c.key for c in THIN_STREET.foreground)


def family(space: str, quality: float = 0.5, seeds: int = 3, images: int = 12, noise: float = 0.01) -> Family:
    """A family whose pixels are right at this rate, which wobbles over seeds and images; absent: traffic light."""
    generator = np.random.default_rng(sum(map(ord, space)))
    rate = quality + generator.normal(0, noise, (seeds, images, 1))
    hits = np.round(1000 * rate).repeat(6, -1)
    confusion = np.zeros((seeds, images, 7, 7))
    confusion[..., range(6), range(6)] = hits
    confusion[..., range(6), [1, 2, 3, 4, 5, 0]] = 1000 - hits
    boundary = np.stack([np.pad(hits, ((0, 0), (0, 0), (0, 1))), np.full((seeds, images, 7), 1000.0)], -1)
    boundary[..., 6, :] = 0
    return Family(space, space.upper(), f"e-{space}-repeats", {"loss.ssim": 0.4}, KEYS, confusion, boundary)


def facts(families: list[Family], seeds: int = 3, checkpoint: Family | None = None) -> dict[str, Any]:
    head = {"name": "n", "point": "start", "origins": [], "settings": {"train.seed": 42}, "missing": []}
    return head | {"command": "the command"} | compare(families, range(seeds), 500, checkpoint)


def test_scores_from_sums_are_those_of_the_trainer():
    generator = torch.Generator().manual_seed(0)
    confusion = torch.randint(100, (7, 7), generator=generator)
    confusion[6], confusion[:, 6] = 0, 0
    rims = torch.stack([torch.arange(7), torch.arange(7) + 2], 1)
    rims[6] = 0
    iou = class_iou(confusion, THIN_STREET)
    expected = [*iou.values(), miou(iou), *(borders := boundary_iou(rims).tolist()[1:]), np.nanmean(borders)]
    sums = torch.cat([confusion.flatten(), rims.flatten()]).numpy().astype(float)
    scores = Scorer(7, (True,) * 5 + (False,))
    assert scores(sums) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(scores(sums)[5])


def test_better_family_is_a_gain_and_an_equal_one_is_not_distinguishable():
    found = facts([family("baseline"), family("good", 0.7), family("even")])
    good, even = (d["iou"]["mean"] for d in found["against_baseline"])
    assert (good["verdict"], even["verdict"]) == ("higher", "not distinguishable")
    assert good["low"] < good["value"] < good["high"]
    assert good["p"] < good["p_holm"] < 0.05 < even["p_holm"]
    assert [f["iou"]["car"]["rank"] for f in found["families"]][1] == 1


def test_class_that_is_nowhere_is_absent_and_left_out_of_the_means():
    found = facts([family("baseline"), family("good", 0.7)])
    (difference,) = found["against_baseline"]
    assert (difference["iou"]["traffic_light"]["value"], difference["iou"]["traffic_light"]["verdict"]) == (
        None,
        "absent",
    )
    assert found["families"][0]["iou"]["mean"]["value"] is not None
    assert found["families"][0]["iou"]["traffic_light"]["rank"] is None


def test_mean_over_the_thin_classes_is_a_row_above_the_miou():
    thin = [replace(f, thin=("fence", "pole")) for f in (family("baseline"), family("good", 0.7))]
    found, plain = facts(thin), facts([replace(f, thin=()) for f in thin])
    rows = found["families"][1]["iou"]
    assert list(rows)[-2:] == [THIN_MEAN, MEAN]
    assert rows[THIN_MEAN]["value"] == pytest.approx((rows["fence"]["value"] + rows["pole"]["value"]) / 2)
    assert [f["iou"][MEAN] for f in found["families"]] == [f["iou"][MEAN] for f in plain["families"]]
    page = render_comparison(found)
    assert "| **thin mIoU** |" in page and "| **thin mean** |" in page and "thin" not in render_comparison(plain)


def test_one_seed_has_no_interval_and_the_page_says_so():
    found = facts([family("baseline", seeds=1), family("good", 0.7, seeds=1)], seeds=1)
    assert found["against_baseline"][0]["iou"]["mean"] | {"value": 0} == {
        "value": 0, "low": None, "high": None, "p": None, "p_holm": None, "verdict": "unknown",
    }  # fmt: skip
    assert "With one seed no interval and no p-value can be given" in render_comparison(found)


def test_page_warns_of_two_seeds_only():
    warning = "With two seeds up to 9 % of equal families differ significantly"
    for seeds in (2, 3):
        found = facts([family("baseline", seeds=seeds), family("good", 0.7, seeds=seeds)], seeds=seeds)
        assert (warning in render_comparison(found)) == (seeds == 2)


def test_without_a_baseline_the_approaches_are_compared_with_each_other():
    found = facts([family("a"), family("b"), family("c")])
    assert found["against_baseline"] == []
    assert [(d["approach"], d["reference"]) for d in found["between_approaches"]] == [
        ("b", "a"),
        ("c", "a"),
        ("c", "b"),
    ]


def test_single_family_has_its_scores_only():
    found = facts([family("a")])
    assert (found["against_baseline"], found["between_approaches"]) == ([], [])
    assert "IoU and boundary IoU" in render_comparison(found)


def test_page_has_the_sources_table_and_calls_a_small_difference_what_it_is():
    page = render_comparison(facts([family("baseline"), family("even"), family("good", 0.7)]))
    assert "| Class | BASELINE | EVEN | Improvement | 95 % interval | p (Holm) |" in page
    assert all(f"| {name} |" in page for name in ("fence", "traffic light", "**mIoU**"))
    assert "is not distinguishable from zero at these seeds" in page
    assert "GOOD − EVEN: mIoU +0.2" in page
    assert "(42, 43, 44)" in page


def test_page_names_what_is_left_out_and_where_best_points_come_from():
    found = facts([family("a")]) | {
        "point": "best",
        "origins": ["A: trial 003 of 20"],
        "missing": ["A: seed 3 is open"],
    }
    assert "at the best point of its study" in render_comparison(found)
    assert "Best points: A: trial 003 of 20." in render_comparison(found)
    assert "Left out: A: seed 3 is open." in render_comparison(found)


def test_untrained_checkpoint_is_compared_with_every_family_and_changes_nothing_else():
    families, one = [family("baseline"), family("good", 0.7)], family("checkpoint", 0.6, seeds=1)
    checkpoint = replace(one, confusion=one.confusion.repeat(3, 0), boundary=one.boundary.repeat(3, 0))
    plain, found = facts(families), facts(families, checkpoint=checkpoint)
    assert {key: found[key] for key in plain} == plain
    assert [d["iou"]["mean"]["verdict"] for d in found["against_checkpoint"]] == ["lower", "higher"]
    page = render_comparison(found)
    assert "## Improvement over the untrained checkpoint: test IoU" in page
    assert "| Class | checkpoint, untrained | BASELINE | GOOD |" in page
    assert "untrained" not in render_comparison(plain)


def test_untrained_checkpoint_is_compared_only_if_all_families_start_from_it(tmp_path: Path):
    settings = {"model.name": str(tmp_path / "weights")}
    plans = plans_from(
        ["baseline", "bas"], studies=None, point="start", seeds=2, config=CONFIG, assignments=settings,
        search={"storage": str(tmp_path / "runs")},
    )  # fmt: skip
    result = make_untrained(split="test", boundary=[[[1, 2]] * 7] * 2)
    for plan in plans:
        Path(plan.location.folder).mkdir(parents=True)
        ledger = Ledger.create(plan.location.ledger_url, plan.study)
        ledger.record_run(StudyMetadata(plan.study, settings=plan.settings.flat(), identity={"data": result.data}))
    assert untrained_checkpoint(plans, 2)[1].startswith("the untrained checkpoint cannot be evaluated: model.name: ")
    LocalStore(plans[1].location.folder).put(UNTRAINED, json.dumps(result.to_json()).encode())
    changed = plans[1].settings.model_copy(update={"model": plans[1].settings.model.model_copy(update={"head": "new"})})
    assert untrained_checkpoint([plans[0], replace(plans[1], settings=changed)], 2) == (None, "")
    found, problem = untrained_checkpoint(plans, 2)  # the file of one study is enough
    assert found is not None and problem == ""
    assert (found.confusion.shape, found.boundary.shape) == ((2, 2, 7, 7), (2, 2, 7, 2))


def test_comparison_is_plain_json():
    checkpoint = family("checkpoint")
    text = json.dumps(facts([family("baseline"), family("good", 0.7)], checkpoint=checkpoint), allow_nan=False)
    assert set(json.loads(text)["families"][0]["iou"]) == {*KEYS, MEAN}


def test_json_is_the_written_comparison_and_nothing_else(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = json.dumps(facts([family("baseline"), family("bas")]), indent=1)

    def run_comparison(
        plans: list[RepeatPlan], name: str, point: str, signals: Signals, precision: float | None
    ) -> int:
        print("trial 000 started")
        open_store(runner.comparison_folder(plans, name)).put("comparison.json", written.encode())
        return 0

    monkeypatch.setattr(runner, "run_comparison", run_comparison)
    assert main(["--spaces", "baseline", "bas", "--storage", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{written}\n", "trial 000 started\n")


def test_plan_is_printed_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ["--spaces", "baseline", "bas", "--seeds", "2", "--storage", str(tmp_path), "--dry-run", "--json"]
    assert main(arguments) == 0
    plan = ComparisonPlanDocument.model_validate_json(capsys.readouterr().out)
    assert (plan.name, plan.point, plan.seeds, plan.trainings) == ("quickstart-start", "start", 2, 4)
    baseline, bas = plan.families
    assert (bas.study, bas.new, bas.open, bas.ended) == ("quickstart-bas-repeats", 2, 0, 0)
    assert bas.point.keys() - baseline.point.keys() == {"loss.ssim", "loss.soft_iou"}
    assert (plan.noise, plan.power) == (None, [])
    assert not list(tmp_path.iterdir())


def mistake(capsys: pytest.CaptureFixture[str], storage: Path, *arguments: str) -> str:
    """The one line in which a call is refused."""
    assert main(["--spaces", "baseline", "bas", "--storage", str(storage), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0"], "--seeds: got 0, must be 1 or more"),
        (["--set", "data.test=0"], "data.test: got 0, a comparison needs test frames"),
        (["--studies", "a"], "--studies: got 1 names for 2 spaces, one for each is needed"),
        (["--spaces", "bas", "bas"], "--spaces: got bas bas, each may be named once"),
        (["--spaces", "bass"], "no search space 'bass' in configs/spaces; did you mean bas?"),
        (["--name", "a/b"], "--name: got 'a/b', must be letters"),
        (["--point", "best"], "--point best: no study quickstart-baseline in"),
        (["--precision", "0.02"], "--precision: changes nothing without --seeds auto"),
        (["--point", "worst"], "--point: got 'worst', must be one of: start, best"),
    ],
)
def test_mistake_is_told_in_one_line(capsys, tmp_path: Path, arguments: list[str], says: str):
    assert mistake(capsys, tmp_path / "runs", *arguments).startswith(f"error: {says}")
    assert not (tmp_path / "runs").exists()


def searched(storage: Path, space: str, finished: bool = True, **settings: Any) -> None:
    """The study of a search that has begun, or has finished one trial."""
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    plan = make_plan(space, CONFIG, changes, {"storage": str(storage)}, None)
    Path(plan.location.folder).mkdir(parents=True)
    ledger = Ledger.create(plan.location.ledger_url, plan.study)
    ledger.record_run(StudyMetadata(identity=plan.identity | {"data": "f00d"}, budget=1))
    strategy_of(plan).prepare(ledger, Signals())
    if finished:
        ask = ledger.next_attempt()
        ledger.report(ask.number, 1, [make_epoch(1, 0.3)])
        ledger.complete(ask.number, 1)


def test_best_of_a_study_without_a_finished_trial_is_refused(capsys, tmp_path: Path):
    searched(tmp_path, "baseline", finished=False)
    line = mistake(capsys, tmp_path, "--point", "best")
    assert "no trial of study quickstart-baseline has finished" in line


def test_best_of_a_study_that_was_searched_otherwise_is_refused_and_the_difference_named(capsys, tmp_path: Path):
    searched(tmp_path, "baseline", train__epochs=7)
    line = mistake(capsys, tmp_path, "--point", "best")
    assert "was searched under other settings (settings.train.epochs: 7 there, 3 now)" in line


def test_best_of_a_study_that_searched_other_settings_is_refused(capsys, tmp_path: Path):
    searched(tmp_path, "baseline")
    searched(tmp_path, "bas", loss__ssim=0.4)
    assert "loss.ssim" in mistake(capsys, tmp_path, "--point", "best")


TINY = ["data.height=64", "data.width=128", "data.train=6", "data.val=4", "data.test=3", "train.epochs=2"]


def line_of(storage: Path, *arguments: str) -> list[str]:
    """A comparison of two families with two seeds."""
    sets = [part for s in TINY for part in ("--set", s)]
    base = [sys.executable, "-m", "search.compare", "--spaces", "baseline", "bas", "--seeds", "2"]
    return [*base, "--storage", str(storage), *sets, "--set", "model.name=small", *arguments]


def test_best_of_a_study_on_other_frames_is_refused(capsys, tmp_path: Path, cache: str):
    sets = {text.split("=")[0]: int(text.split("=")[1]) for text in TINY} | {"data.cache": cache}
    searched(tmp_path, "bas", **{key.replace(".", "__"): value for key, value in sets.items()})
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert "was searched on other frames" in mistake(capsys, tmp_path, "--spaces", "bas", "--point", "best", *arguments)


def test_families_may_differ_in_the_sampling_of_frames_and_start_with_terms_that_are_off(tmp_path: Path):
    plans = plans_from(
        ["baseline", "rare", "all"], studies=None, point="start", seeds=1, config=CONFIG, assignments={},
        search={"storage": str(tmp_path)},
    )  # fmt: skip
    temperatures = [plan.settings.data.rare_class_temperature for plan in plans]
    assert temperatures == [0, load_space("rare", DataConfig()).start["data.rare_class_temperature"], 0]
    point = plans[2].repeats[0].params
    assert (point["loss.lovasz"], point["loss.ssim"]) == (0, 0.4)
    ledger = Ledger.create(f"sqlite:///{tmp_path}/repeats.db", "s")
    ledger.start(FixedTrials(plans[2].repeats), epochs=1, select="last")
    attempt = ledger.next_attempt()
    assert attempt is not None and attempt.params == point
    assert plans[2].trial_settings(attempt)["loss.lovasz"] == 0


def test_best_points_come_with_the_number_of_trials_that_were_searched(tmp_path: Path):
    searched(tmp_path, "bas")
    plan = make_plan("bas", CONFIG, {}, {"storage": str(tmp_path)}, None)
    (repeats,) = plans_from(
        ["bas"],
        studies=None,
        point="best",
        seeds=3,
        config="configs/quickstart.yaml",
        assignments={},
        search={"storage": str(tmp_path)},
    )
    assert repeats.repeats[0].params == plan.space.start
    assert budgets([repeats]) == ["BAS: trial 000 of 1"]


@pytest.mark.ray
@pytest.mark.slow
def test_comparison_that_was_killed_is_continued_and_the_books_are_clean(start, tmp_path: Path):
    storage = tmp_path / "runs"
    first = start(storage, command=line_of)
    first.wait_for(r"trial 000  epoch 1/2", limit_s=200)
    first.kill()
    again = start(storage, command=line_of)
    assert again.finish() == 0, again.output
    assert "evaluated on 3 test frames" in " ".join(again.output.split())
    for study in ("quickstart-baseline-repeats", "quickstart-bas-repeats"):
        assert audit(storage, study, trials=2) == []
        seeds = [(t.seed, t.test.images) for t in open_ledger(find_location(storage, study)).trials()]
        assert seeds == [(0, 3), (1, 3)]
    assert sorted(p.name for p in storage.glob("*-repeats")) == [
        "quickstart-bas-repeats",
        "quickstart-baseline-repeats",
    ]
    written = json.loads((storage / "comparison" / "quickstart-start" / "comparison.json").read_text())
    assert written["against_baseline"][0]["iou"]["mean"]["p_holm"] is not None
    with open_client(f"sqlite:///{storage / 'mlflow.db'}") as client:
        experiment = client.get_experiment_by_name("quickstart").experiment_id
        (run,) = client.search_runs([experiment], "tags.`fgseg.kind` = 'comparison'")
        assert sorted(f.path for f in client.list_artifacts(run.info.run_id)) == ["comparison.json", "comparison.md"]
        assert run.data.metrics["test/gain/bas"] == written["against_baseline"][0]["iou"]["mean"]["value"]
    change(
        storage / "quickstart-bas-repeats" / "study.db",
        "UPDATE fgsearch_trials SET state = 'fail' WHERE number >= 0",
    )
    lone = start(storage, "--seeds", "1", command=line_of)
    assert lone.finish() == 0, lone.output
    assert "search.delete --study quickstart-bas-repeats" in " ".join(lone.output.split())
    with open_client(f"sqlite:///{storage / 'mlflow.db'}") as client:
        (run,) = client.search_runs([experiment], "tags.`fgseg.kind` = 'comparison'")
        assert set(run.data.metrics) == {"test/miou/baseline"}
    longer = start(storage, "--set", "train.epochs=3", "--accept-changes", command=line_of)
    assert longer.finish() == 1, longer.output
    assert "was trained with another train.epochs" in " ".join(longer.output.split())
