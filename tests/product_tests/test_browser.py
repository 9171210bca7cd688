"""MLflow as a person sees it: a real server, a real browser, after the README's search and one of another family.

Screenshots are left in pytest's temporary folder (`browser*/`).
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import LIMIT_S, Finished, absent
from kept_study import finished_study
from thin_street import FOREGROUND

from scripts.browser import BROWSER, DRIVER, Pages, open_pages
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@dataclass(frozen=True)
class Site(Pages):
    """The pages of one server, with screenshots in a folder."""

    folder: Path

    def shot(self, name: str) -> None:
        self.browser.save_screenshot(str(self.folder / f"{name}.png"))

    def rows(self) -> list[str]:
        """The names of the runs that the table lists, from above."""
        cells = "return [...document.querySelectorAll('[role=row]')].sort((a, b) => a.rowIndex - b.rowIndex)"
        script = cells.replace("a.rowIndex - b.rowIndex", "a.ariaRowIndex - b.ariaRowIndex")
        script += ".map(r => r.querySelector('a[href*=\"/runs/\"]')).filter(a => a).map(a => a.innerText.trim())"
        return list(self.browser.execute_script(script))


@pytest.fixture(scope="module")
def storage(quickstart: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of the quickstart, with a made-up study of another family; other tests count the quickstart's."""
    if not BROWSER or not DRIVER:
        absent("the browser test needs chromium and chromium-driver")
    if find_spec("selenium") is None:
        absent("the browser test needs selenium")
    assert quickstart.code == 0, quickstart.output
    copy = tmp_path_factory.mktemp("browser-storage") / "runs"
    shutil.copytree(quickstart.storage, copy)
    finished_study(copy, "other-bas")
    return copy


@pytest.fixture(scope="module")
def trials(storage: Path) -> list[TrialRecord]:
    """The trials of the quickstart, best first."""
    records = Ledger(f"sqlite:///{storage / 'quickstart-bas_cp' / 'study.db'}", "quickstart-bas_cp").trials()
    return sorted(records, key=lambda t: -(t.value or 0))


@pytest.fixture(scope="module")
def site(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("browser")
    with open_pages(f"sqlite:///{storage / 'mlflow.db'}", folder, width=1600, height=1000) as pages:
        yield Site(pages.browser, pages.base, folder)


@pytest.fixture(scope="module")
def runs(site: Site) -> dict[str, str]:
    """The id of every run by its name."""
    from search.tracking.client import load_client

    client = load_client()(tracking_uri=site.base)
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}


def test_person_who_chooses_model_training_sees_both_studies_and_their_trials_nested(site: Site):
    site.browser.get(f"{site.base}/#/experiments/1")
    assert site.shows("Model training")
    toggle = "return [...document.querySelectorAll('[role=button]')].find(e => e.innerText == 'Model training')"
    site.browser.execute_script("arguments[0].click()", site.until(lambda: site.browser.execute_script(toggle)))
    assert site.shows("quickstart-bas_cp", "other-bas")
    assert "bas_cp/000" not in site.text
    site.shot("studies")
    unfold = "[...document.querySelectorAll('[role=row]')].find(r => r.innerText.includes('quickstart-bas_cp'))"
    site.browser.execute_script(f"{unfold}.querySelector('button').click()")
    assert site.shows("bas_cp/000", "bas_cp/007", "streets (", "fgsearch")
    site.shot("trials")


@pytest.mark.parametrize("metric", ["val/miou", "val/iou/car"])
@pytest.mark.parametrize("rising", [False, True])
def test_columns_of_metrics_sort_the_trials(site: Site, trials: list[TrialRecord], metric: str, rising: bool):
    scores = {f"bas_cp/{t.number:03d}": t.epochs[-1].metrics()[metric] for t in trials}
    order = sorted(scores, key=lambda name: scores[name], reverse=not rising)
    query = quote("tags.fgseg.kind = 'trial' and tags.fgseg.space = 'bas_cp'")
    key = quote(f"metrics.`{metric}`")
    site.open(f"experiments/1/runs?searchFilter={query}&orderByKey={key}&orderByAsc={str(rising).lower()}")
    assert site.until(lambda: site.rows() == order), site.rows()
    site.shot(f"sorted-{metric.replace('/', '-')}-{'up' if rising else 'down'}")


def test_page_of_a_trial_shows_state_family_and_settings(site: Site, runs: dict[str, str], trials: list[TrialRecord]):
    name = f"bas_cp/{trials[0].number:03d}"
    site.open(f"experiments/1/runs/{runs[name]}")
    assert site.shows(name, "Finished", "quickstart-bas_cp", "BAS + copy-paste", "copy_paste.prob", "train.lr")
    assert site.shows("val/miou", *(f"val/iou/{c.key}" for c in FOREGROUND[:2]))
    site.shot("trial")


def test_curves_of_a_trial_have_one_point_an_epoch(site: Site, runs: dict[str, str]):
    """Pictures and the charts of the outcome come first; mlflow/README.md says how to see the curves."""
    site.open(f"experiments/1/runs/{runs['bas_cp/000']}/model-metrics")
    search = "input[placeholder='Search metric charts']"
    site.until(lambda: site.browser.find_elements("css selector", search))[0].send_keys("^val/")
    drawn = (
        "for (const e of document.querySelectorAll('*')) e.scrollTop = e.scrollHeight;"  # charts are drawn when seen
        "return [...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0].x.length)"
    )
    assert site.until(lambda: set(points := site.browser.execute_script(drawn)) == {3} and len(points) >= 2)
    site.shot("curves")


def test_overlays_of_a_trial_are_among_its_artifacts(site: Site, runs: dict[str, str]):
    site.open(f"experiments/1/runs/{runs['bas_cp/000']}/artifacts/overlays")
    assert site.shows("overlays", ".png")
    site.shot("overlays")


def test_report_is_among_the_artifacts_of_the_study(site: Site, runs: dict[str, str]):
    site.open(f"experiments/1/runs/{runs['quickstart-bas_cp']}/artifacts/report")
    assert site.shows("report.html", "history.png")
    site.shot("report")


def test_report_sorts_tables_and_lays_two_predictions_of_a_frame_over_each_other(site: Site, storage: Path):
    page, script = storage / "quickstart-bas_cp" / "report" / "report.html", site.browser.execute_script
    site.browser.get(page.as_uri())
    column = (
        "return [...document.querySelectorAll('table.dense tbody')[0].rows].map(r => r.cells[arguments[0]].innerText)"
    )
    site.click("table.dense th", 3)
    values = [value for value in script(column, 3) if value != "-"]
    assert len(values) > 1 and values == sorted(values, reverse=True)
    site.click("table.dense th", 0)
    site.click("table.dense th", 0)
    assert script(column, 0) == sorted(script(column, 0))
    if "<figcaption>start</figcaption>" in page.read_text():  # else the start point is the best trial
        slider = (
            "const s = document.querySelector('.compare input'); s.value = 25; s.dispatchEvent(new Event('input'));"
        )
        clip = f"{slider} return document.querySelector('.compare img + img').style.clipPath"
        assert script(clip) == "inset(0px 75% 0px 0px)"
    site.shot("report-page")


def test_two_families_compare_in_one_view_with_parallel_coordinates_and_classes(site: Site, runs: dict[str, str]):
    chosen = [runs[name] for name in ("bas_cp/000", "bas_cp/001", "bas/000")]
    site.open(f"compare-runs?runs={quote(json.dumps(chosen))}&experiments={quote(json.dumps(['1']))}")
    assert site.shows("Comparing 3 Runs from 1 Experiment", "Parallel Coordinates Plot", "bas_cp/001", "bas/000")
    assert site.shows("val/miou", *(f"val/iou/{c.key}" for c in FOREGROUND))
    site.shot("compare")


def test_trials_that_are_ticked_compare_in_parallel_coordinates(site: Site):
    query, key = quote("tags.fgseg.kind = 'trial' and tags.fgseg.space = 'bas_cp'"), quote("metrics.`val/miou`")
    site.open(f"experiments/1/runs?searchFilter={query}&orderByKey={key}&orderByAsc=false")
    assert site.until(lambda: len(site.rows()) == 8), site.rows()
    rows = "[...document.querySelectorAll('[role=row]')].filter(row => row.innerText.includes(arguments[0]))"
    box = f"return {rows}.map(row => row.querySelector('input[type=checkbox]')).find(box => box)"
    for name in ("bas_cp/000", "bas_cp/003"):
        site.browser.execute_script("arguments[0].click()", site.browser.execute_script(box, name))
    button = "return [...document.querySelectorAll('button')].find(button => button.innerText.trim() == 'Compare')"
    site.browser.execute_script("arguments[0].click()", site.until(lambda: site.browser.execute_script(button)))
    assert site.shows("Comparing 2 Runs from 1 Experiment")
    plots = "return [...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data[0])"
    drawn = site.until(lambda: site.browser.execute_script(plots))
    assert drawn[0]["type"] == "parcoords"
    assert {"class_weights.pole", "val/miou"} <= {axis["label"] for axis in drawn[0]["dimensions"]}
    site.shot("ticked")
