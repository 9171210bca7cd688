"""The report of a study: what it says, what it shows, and that it needs nothing else."""

import base64
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_trial, make_untrained
from kept_study import begin, finished_study
from matplotlib.figure import Figure
from PIL import Image
from small_checkpoint import save_checkpoint
from thin_street import FOREGROUND, THIN_STREET

from fgseg.checkpoints.untrained_result import read_untrained
from fgseg.config.settings import RunConfig
from fgseg.data import fingerprint, load_splits
from fgseg.labels import VOID
from fgseg.storage.store import LocalStore
from search.ledger.catalog import open_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, rank_trials
from search.ledger.study_metadata import StudyMetadata
from search.report import __main__ as report
from search.report.build import FRAMES_LATER, is_current, report_files, store_files, write_report
from search.report.charts import parallel, plain_ticks, slices, ticks
from search.report.content import Content, build_content
from search.report.frames import Frames, ShownFrame, choose_frames, difference
from search.report.summary import Baseline, Summary, find_baseline, summarise
from search.sampling.importance import MIN_TRIALS, caution, importance
from search.study.location import StudyLocation, find_location
from search.study.space import Range

pytestmark = pytest.mark.slow

RANGES = {
    "loss.ssim": Range(low=0.05, high=5, log=True, start=0.25),
    "copy_paste.prob": Range(low=0, high=1, start=0.5),
}
PIXELS = np.zeros((4, 8), np.uint8)
FRAME = ShownFrame("town_000001", np.zeros((4, 8, 3), np.uint8), PIXELS, PIXELS, PIXELS, THIN_STREET)
PANELS = 5


def summary(*records: TrialRecord) -> Summary:
    points = {r.number: {"loss.ssim": 0.1 * (1 + r.number), "copy_paste.prob": (r.number * 0.37) % 1} for r in records}
    trials = [replace(r, params=points[r.number], selected=len(r.epochs)) for r in records]
    ranked = rank_trials(trials, changed_batch=False)
    return Summary(
        study="quickstart-bas",
        space="bas",
        title="Boundary-aware",
        experiment="quickstart",
        settings=RunConfig().flat() | {"train.epochs": 3},
        ranges=RANGES,
        data="f00d",
        resources={"gpus": 0.5, "cpus": 1},
        trials=trials,
        ranked=ranked,
        start=next((t for t in trials if t.number == 0 and t.value is not None), None),
        best=ranked[0] if ranked else None,
    )


MIXED = (
    make_trial(0),
    make_trial(1),
    make_trial(2, "fail", done=1, reason="<the loss> is nan"),
    make_trial(3, "pruned", done=1),
)


def content(*records: TrialRecord) -> Content:
    frames = Frames((FRAME,) if summary(*records).best else (), "Chosen.")
    return build_content(summary(*records), Baseline(reason="No baseline."), frames, written=1e9)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A report with a trial of every ending and one frame."""
    return report_files(content(*MIXED, *(make_trial(k) for k in range(4, 12))))


def test_page_asks_for_nothing_from_elsewhere(files: dict[str, bytes]):
    page = files["report.html"].decode()
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|<script |https?://|fetch\(", page)
    assert page.count("<script>") == 1
    assert "<noscript" not in page and 'class="compare"' not in page  # made by the script, so that all is there without


def test_every_picture_of_the_page_opens_and_has_an_alternative_text(files: dict[str, bytes]):
    pictures = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)" alt="([^"]+)"', files["report.html"].decode())
    assert len(pictures) == files["report.html"].count(b"<img") == 6 + PANELS
    for form, data, alt in pictures:
        assert Image.open(BytesIO(base64.b64decode(data))).format.lower() == form
        assert len(alt) > 10


def test_page_tells_gains_classes_failures_and_cost(files: dict[str, bytes]):
    page = files["report.html"].decode()
    assert all(
        text in page for text in ("+0.1100", "&lt;the loss&gt; is nan", "10 finished, 1 stopped early, 1 failed")
    )
    assert all(c.name in page for c in FOREGROUND)
    assert "No baseline." in page and "GPU-hours" in page


def test_report_compares_the_best_trial_with_the_untrained_checkpoint():
    known = replace(summary(make_trial(0), make_trial(1)), untrained=make_untrained())
    written = report_files(build_content(known, Baseline(), Frames((), "None."), written=1e9))
    text, page = written["report.md"].decode(), written["report.html"].decode()
    assert "| validation IoU | checkpoint, untrained | start | best | over checkpoint | over start |" in text
    assert "| **mIoU** | **0.2500** | **0.3000** | **0.3100** | **+0.0600** | **+0.0100** |" in text
    assert "| traffic light | absent | 0.3600 | 0.3700 | - | +0.0100 |" in text
    assert "over the untrained checkpoint" in page and '<span class="up">+0.0600</span>' in page


def test_report_has_the_thin_miou_of_trials_and_checkpoint():
    thin = ["fence", "traffic_light"]
    trials = [replace(t, epochs=[replace(e, thin=thin) for e in t.epochs]) for t in (make_trial(0), make_trial(1))]
    known = replace(summary(*trials), untrained=make_untrained(thin=thin))
    text = report_files(build_content(known, Baseline(), Frames((), "None."), written=1e9))["report.md"].decode()
    assert "| **thin mIoU** | **0.2500** | **0.3350** | **0.3450** | **+0.0950** | **+0.0100** |" in text
    assert "| trial | state | epochs | mIoU | thin mIoU | fence |" in text


def test_points_of_the_charts_name_their_trials_where_the_picture_has_them(files: dict[str, bytes]):
    found = content(*MIXED, *(make_trial(k) for k in range(4, 12)))
    chart = next(chart for chart in found.charts if chart.name == "history")
    assert [p.text for p in chart.points[:2]] == ["trial 000: mIoU 0.3000", "trial 001: mIoU 0.3100"]
    pixels = np.asarray(Image.open(BytesIO(chart.png)).convert("RGB"))
    height, width = pixels.shape[:2]
    finished = [p for p in chart.points if "trial 003" not in p.text]
    assert len(finished) == 10
    for point in finished:
        y, x = round(point.top * height), round(point.left * width)
        assert (pixels[y - 4 : y + 5, x - 4 : x + 5] == (0, 0x62, 0xBE)).all(-1).any(), point
    page = files["report.html"].decode()
    assert 'data-text="trial 000: loss.ssim 0.1, mIoU 0.3000"' in page


def test_frames_of_an_inherited_head_show_the_untrained_checkpoint():
    shown = replace(FRAME, untrained=PIXELS).panels()
    assert list(shown) == ["photo", "truth", "checkpoint", "start", "best", "changed pixels"]
    assert list(FRAME.panels()) == ["photo", "truth", "start", "best", "changed pixels"]


def test_markdown_names_the_pictures_beside_it(files: dict[str, bytes]):
    text = files["report.md"].decode()
    assert set(re.findall(r"\]\((.+?)\)", text)) == {name for name in files if name.endswith(".png")}
    assert "| **mIoU** | **0.3000** | **0.4100** | **+0.1100** |" in text


def test_report_of_a_study_without_a_finished_trial_says_so():
    bare = report_files(content(make_trial(0, "running", done=1)))
    assert bare.keys() == {"report.html", "report.md"}
    assert all(b"No trial has finished yet" in data for data in bare.values())


@pytest.mark.parametrize("count", [1, 2, MIN_TRIALS - 1])
def test_report_of_few_trials_has_no_importance_and_says_why(count: int):
    few = report_files(content(*(make_trial(k) for k in range(count))))
    assert "importance.png" not in few and "parallel.png" in few
    assert b"are too few to compute importances" in few["report.html"]


def test_report_of_a_space_without_settings_has_no_charts_of_them():
    bare = replace(content(make_trial(0), make_trial(1)).summary, ranges={})
    drawn = report_files(build_content(bare, Baseline(), Frames((), "None."), written=1e9))
    assert {"slices.png", "parallel.png", "importance.png"}.isdisjoint(drawn)


def test_importance_finds_the_setting_that_decides():
    records = [
        replace(
            make_trial(k), value=0.1 * k % 1, params={"loss.ssim": 0.1 * (k % 3 + 1), "copy_paste.prob": 0.1 * k % 1}
        )
        for k in range(20)
    ]
    shares = importance(records, RANGES)
    assert next(iter(shares)) == "copy_paste.prob"
    assert sum(shares.values()) == pytest.approx(1)


def test_points_of_before_a_range_was_narrowed_have_no_part_in_the_importance():
    ranges = {key: Range(low=0, high=1, start=0.5) for key in ("a", "b")}
    inside = [make_trial(n, params={"a": n / 10, "b": 0.5 + n / 30}, value=n / 10) for n in range(MIN_TRIALS)]
    outside = make_trial(MIN_TRIALS, params={"a": 4.0, "b": 0.5}, value=0.9)
    assert importance([*inside, outside], ranges) == importance(inside, ranges) != {}
    assert importance([*inside[1:], outside], ranges) == {}
    assert caution([*inside[1:], outside], ranges).startswith(f"{MIN_TRIALS - 1} finished trials are too few")
    assert ranges["a"].share(4.0) == 1 and Range(low=0.1, high=1, log=True, start=0.5).share(0.0) == 0


def test_setting_that_is_off_has_its_place_in_importance_charts_and_tables():
    switched = Range(low=0.01, high=10, log=True, start=0, off_below=0.1)
    ranges = {"loss.ssim": switched, "copy_paste.prob": Range(low=0, high=1, start=0.5)}
    records = [
        make_trial(k, params={"loss.ssim": 0.0 if k % 2 else 1.0, "copy_paste.prob": k / 10}, value=k % 2 / 2 + k / 100)
        for k in range(10)
    ]
    assert next(iter(importance(records, ranges))) == "loss.ssim"
    assert switched.share(0) == 0
    figure = Figure()
    plain_ticks(axes := figure.subplots(), switched)
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["off", "0.1"]
    study = replace(summary(*records), ranges=ranges, ranked=records, best=records[9])
    assert slices(study, [*ranges]) and parallel(study)
    assert study.point()[0][:2] == ("loss.ssim", 0)


def test_importance_of_equal_trials_is_unknown():
    equal = [replace(make_trial(k), value=0.5, params={"loss.ssim": 1.0, "copy_paste.prob": 0.1 * k}) for k in range(9)]
    assert importance(equal, RANGES) == {}


def test_caution_fades_with_the_number_of_trials():
    trials = [make_trial(k, params={key: spec.start for key, spec in RANGES.items()}) for k in range(40)]
    assert "may still change" in caution(trials[:10], RANGES)
    assert "may still change" not in caution(trials, RANGES)


def test_cost_counts_the_shares_of_gpus_and_the_epochs_that_pruning_saved():
    cost = summary(*MIXED).cost()
    assert cost.epochs == 3 + 3 + 1 + 1 and cost.saved == 2
    assert cost.amount == pytest.approx(8 * 10 / 3600 * 0.5)
    assert cost.unit == "GPU-hours"


def test_trial_whose_batch_was_changed_is_ranked_only_where_that_is_allowed():
    records = [make_trial(0), make_trial(1, overrides={"train.batch_size": 1})]
    assert [t.number for t in rank_trials(records, changed_batch=False)] == [0]
    assert [t.number for t in rank_trials(records, changed_batch=True)] == [1, 0]


@pytest.mark.parametrize("key", RANGES)
def test_ticks_are_round_and_inside_the_range(key: str):
    shown = ticks(RANGES[key])
    assert 3 <= len(shown) <= 6
    assert all(RANGES[key].low <= tick <= RANGES[key].high for tick in shown)


def test_frames_differ_by_classes_however_small_and_void_is_not_judged():
    truth = np.zeros((2, 8, 8), np.uint8)
    truth[:, 0, 0], truth[1, 4:], truth[:, 7, 7] = 4, 2, VOID
    before, after = truth.copy(), truth.copy()
    before[0, 0, 0] = 0  # a pole of one pixel missed: IoU 0 -> 1
    after[1, 7, 7] = 2  # only a void pixel
    before[1, 4] = 0  # an eighth of the frame, a quarter of its car: IoU 24/31 -> 1
    before[:, 7, 7] = 5
    assert difference(THIN_STREET, truth, before, after).tolist() == pytest.approx([1, 1 - 23 / 31])


def test_frames_are_left_out_with_a_reason():
    def gone(number: int) -> LocalStore:
        return LocalStore("/nowhere")

    assert "No trial has finished" in choose_frames(summary(make_trial(0, "running")), gone).note
    assert "has not finished" in choose_frames(summary(make_trial(0, "fail"), make_trial(1)), gone).note
    assert "is the best trial so far" in choose_frames(summary(make_trial(0)), gone).note
    assert "gone (trial 000 has no checkpoint" in choose_frames(summary(make_trial(0), make_trial(1)), gone).note


def test_wide_photos_are_shown_smaller_in_whole_steps():
    big = ShownFrame("x", np.zeros((520, 1040, 3), np.uint8), *[np.zeros((520, 1040), np.uint8)] * 3, THIN_STREET)
    assert {picture.shape for picture in big.panels().values()} == {(173, 346, 3)}
    tall = ShownFrame("x", np.zeros((1024, 512, 3), np.uint8), *[np.zeros((1024, 512), np.uint8)] * 3, THIN_STREET)
    assert {picture.shape for picture in tall.panels().values()} == {(512, 256, 3)}


@pytest.fixture
def kept(tmp_path: Path) -> StudyLocation:
    return finished_study(tmp_path)


def test_baseline_is_the_study_of_that_family_on_the_same_frames(kept: StudyLocation):
    mine = replace(summarise(open_ledger(kept)), experiment="x")
    assert "no study x-baseline" in find_baseline(kept, mine).reason
    other = finished_study(Path(kept.storage), "x-baseline")
    found = find_baseline(kept, mine).summary
    assert found and found.best and found.best.value == pytest.approx(0.3)
    assert "other frames" in find_baseline(kept, replace(mine, data="beef")).reason
    recipe = replace(mine, settings=mine.settings | {"model.name": "b0"})
    assert find_baseline(kept, recipe).reason == "Study x-baseline has another model.name, so it is not compared."
    placed = replace(mine, settings=mine.settings | {"train.compile": "off", "loss.ssim": 3.0})
    assert find_baseline(kept, placed).summary is not None
    assert find_baseline(other, replace(mine, space="baseline")) == Baseline()


def test_command_writes_the_report_of_a_study_and_names_it(kept: StudyLocation, capsys: pytest.CaptureFixture[str]):
    assert report.main(["--study", "s", "--storage", str(kept.storage), "--no-frames"]) == 0
    page = Path(kept.folder, "report", "report.html")
    assert str(page) in capsys.readouterr().out
    assert "The start point itself" not in page.read_text() and "come at the end of the run" in page.read_text()


def test_command_for_a_study_without_finished_trials_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begin(tmp_path, "young")
    assert report.main(["--study", "young", "--storage", str(tmp_path)]) == 0
    assert "no trial has finished yet" in capsys.readouterr().out


def test_command_for_an_unknown_study_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report.main(["--study", "none", "--storage", str(tmp_path)]) == 2
    assert "there are none" in capsys.readouterr().err


def test_page_is_written_last(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    names: list[str] = []
    monkeypatch.setattr(LocalStore, "put", lambda store, name, data: names.append(name))
    store_files(LocalStore(tmp_path), files)
    assert names[-1] == "report.html" and set(names) == set(files)


def test_report_is_current_if_it_shows_frames_the_best_trial_and_all_that_have_ended(tmp_path: Path):
    store, trials = LocalStore(tmp_path), (make_trial(0), make_trial(1), make_trial(2, "running", done=1))
    store_files(store, report_files(content(*trials)))
    assert is_current(store, trials, best=trials[1])
    assert not is_current(store, trials, best=trials[0])  # another one was confirmed
    assert not is_current(store, (*trials, make_trial(3)), best=trials[1])
    store_files(store, report_files(replace(content(*trials), frames=Frames((), FRAMES_LATER))))
    assert not is_current(store, trials, best=trials[1])


def test_pictures_of_an_earlier_report_are_deleted(kept: StudyLocation):
    kept.report_store.put("frame-1.png", b"old")
    kept.report_store.put("notes.txt", b"somebody's own")
    names = write_report(kept, frames=False)
    assert set(kept.report_store.list()) == {*names, "notes.txt"}


def test_command_evaluates_an_untrained_checkpoint_whose_result_is_lost(
    tmp_path: Path, tiny, capsys: pytest.CaptureFixture[str]
):
    run = tiny(model__name=save_checkpoint(tmp_path / "weights"))
    data = fingerprint(load_splits(run.data, ("train", "val")))
    location = inheriting_study(tmp_path / "runs", run.flat(), data)
    arguments = ["--study", "s", "--storage", location.storage]
    assert report.main([*arguments, "--no-frames"]) == 0
    assert read_untrained(LocalStore(location.folder)) is None
    assert report.main(arguments) == 0
    first = read_untrained(LocalStore(location.folder))
    assert first is not None and first.data == data
    assert report.main(arguments) == 0 and read_untrained(LocalStore(location.folder)) == first
    assert capsys.readouterr().err == ""


def test_command_says_why_the_untrained_checkpoint_cannot_be_evaluated(
    tmp_path: Path, tiny, capsys: pytest.CaptureFixture[str]
):
    location = inheriting_study(tmp_path / "runs", tiny(model__name="./gone").flat(), "f00d")
    assert report.main(["--study", "s", "--storage", location.storage]) == 0
    assert "warning: the untrained checkpoint cannot be evaluated: model.name: " in capsys.readouterr().err


def inheriting_study(storage: Path, settings: dict[str, Any], data: str) -> StudyLocation:
    """A study without trials whose model inherits the head of a checkpoint."""
    (storage / "s").mkdir(parents=True)
    location = find_location(storage, "s")
    Ledger.create(location.ledger_url, "s").record_run(
        StudyMetadata("s", "bas", "BAS", "tiny", settings, identity={"settings": settings, "data": data}, budget=1)
    )
    return location
