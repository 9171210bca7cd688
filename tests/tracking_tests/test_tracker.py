"""MLflow as people see it: runs, tags, params, points and states, after restarts and interruptions."""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import START, make_epoch, make_history, make_trial, make_untrained
from fake_ledger import METADATA, SETTINGS, FakeLedger
from thin_street import FOREGROUND

from fgseg.checkpoints.untrained_result import UNTRAINED, UntrainedResult
from fgseg.storage.store import open_store
from search.ledger.records import State
from search.study.location import StudyLocation
from search.tracking.client import create_database, fill_database, load_client
from search.tracking.run_schema import STATUS, epoch_points, trial_tags
from search.tracking.sync import reconcile
from search.tracking.tracker import Tracker

pytestmark = pytest.mark.slow

READ = {"data.reader": "folder", "data.root": "s3://me:secret@bucket/streets/", "data.train": 8}


class Server:
    """A fresh SQLite tracking database, and what can be read back from it."""

    def __init__(self, folder: Path):
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.location = StudyLocation(str(folder), "quickstart-bas", self.uri)
        self.metadata = replace(METADATA, identity={"version": "1", "data": "0123456789abcdef" * 4})

    @property
    def client(self) -> Any:
        return load_client()(tracking_uri=self.uri)

    def reconcile(self, ledger: FakeLedger, **options: Any) -> None:
        reconcile(ledger, self.location, self.metadata, **options)

    def track(self, ledger: FakeLedger) -> Tracker:
        tracker = Tracker(ledger, self.location, self.metadata)
        tracker.start()
        return tracker

    def runs(self, kind: str) -> list[Any]:
        experiment = self.client.get_experiment_by_name("quickstart")
        found = self.client.search_runs([experiment.experiment_id], f"tags.`fgseg.kind` = '{kind}'")
        return sorted(found, key=lambda run: run.info.run_name)

    def parent(self) -> Any:
        (run,) = self.runs("study")
        return run

    def points(self, run: Any, key: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrations take 1.4 s: they are run once for all tests."""
    folder = tmp_path_factory.mktemp("database")
    load_client()
    create_database(f"sqlite:///{folder / 'mlflow.db'}", lambda uri: fill_database(uri, folder.as_uri()))
    return folder / "mlflow.db"


@pytest.fixture
def server(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Server(tmp_path)


def test_a_study_is_one_parent_with_one_named_child_per_trial(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0), make_trial(12)))
    parent = server.parent()
    assert parent.info.run_name == "quickstart-bas"
    assert [run.info.run_name for run in server.runs("trial")] == ["bas/000", "bas/012"]
    assert {run.data.tags["mlflow.parentRunId"] for run in server.runs("trial")} == {parent.info.run_id}


def test_runs_carry_the_tags_by_which_they_are_found(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(3, attempt=2)))
    (run,) = server.runs("trial")
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("fgseg.")}
    shared = {"fgseg.study": "quickstart-bas", "fgseg.space": "bas"}
    own = {"fgseg.kind": "trial", "fgseg.trial": "3", "fgseg.attempt": "2"}
    assert tags == shared | own
    expected = shared | {"fgseg.kind": "study", "fgseg.best_trial": "3", "fgseg.version": "1"}
    assert expected.items() <= server.parent().data.tags.items()
    assert "Boundary-aware" in run.data.tags["mlflow.note.content"]


def test_runs_name_the_data_that_they_read_and_what_wrote_them(server: Server) -> None:
    server.metadata = replace(server.metadata, settings=SETTINGS | READ)
    ledger = FakeLedger(make_trial(0))
    for _ in range(2):
        server.reconcile(ledger)
    for run in (server.parent(), *server.runs("trial")):
        assert run.data.tags["mlflow.source.name"] == "fgsearch"
        (entry,) = run.inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("folder streets", "0123456789ab")
        assert json.loads(entry.dataset.source) == {"reader": "folder", "root": "s3://***@bucket/streets", "train": 8}


def test_settings_become_dotted_params_as_they_read_in_json(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0)))
    (run,) = server.runs("trial")
    written = {"train.lr": "6e-05", "train.epochs": "3", "train.select": "last", "train.seed": "42"}
    written |= {"data.reader": "streets", "data.root": "null", "model.name": "small"}
    assert server.parent().data.params == written
    assert run.data.params == written | {"loss.ssim": "0.25"}


def test_more_params_than_one_request_takes_are_all_written(server: Server) -> None:
    many = {f"loss.term_{k}": float(k) for k in range(230)}
    server.metadata = replace(server.metadata, settings=many | {"train.seed": 42})
    server.reconcile(FakeLedger(make_trial(0)))
    assert len(server.runs("trial")[0].data.params) == 232  # the seed and the trial's own point


def test_an_epoch_is_one_step_with_every_metric_at_its_wall_time(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0)))
    (run,) = server.runs("trial")
    classes = {f"val/iou/{c.key}" for c in FOREGROUND}
    names = {"val/miou", "train/loss", "train/loss/ssim", "train/images_per_s"} | classes
    outcome = {"best/epoch", *("best/val/miou", "selected/val/miou"), *(f"selected/{name}" for name in classes)}
    assert run.data.metrics.keys() == names | outcome
    history = server.client.get_metric_history(run.info.run_id, "val/miou")
    assert [m.step for m in history] == [1, 2, 3]
    assert [m.timestamp for m in history] == [int(START * 1000) + k for k in (10125, 20250, 30375)]


def test_ended_trial_has_its_best_and_its_selected_epoch_as_columns(server: Server) -> None:
    """`train.select` is last: the best epoch of the first trial is not the selected one."""
    first = make_trial(0, epochs=make_history(0.2, 0.4, 0.3))
    server.reconcile(FakeLedger(first, make_trial(1, "pruned", epochs=make_history(0.1)), make_trial(2, "running")))
    complete, pruned, running = (run.data.metrics for run in server.runs("trial"))
    assert (complete["best/val/miou"], complete["best/epoch"], complete["selected/val/miou"]) == (0.4, 2, 0.3)
    assert complete["selected/val/iou/pole"] == complete["val/iou/pole"]
    assert [(m["best/val/miou"], "selected/val/miou" in m) for m in (complete, pruned)] == [(0.4, True), (0.1, False)]
    assert not any(name.startswith(("best/", "selected/")) for name in running)


def test_study_has_the_outcome_of_its_best_trial_and_the_gains(server: Server) -> None:
    ledger = FakeLedger(make_trial(0, epochs=make_history(0.3)), make_trial(1, epochs=make_history(0.6, 0.5)))
    server.reconcile(ledger)
    assert "gain/over_checkpoint" not in server.parent().data.metrics
    store_untrained(server, miou=0.25)
    server.reconcile(ledger)
    found = server.parent().data.metrics
    names = ("best/val/miou", "best/epoch", "selected/val/miou", "gain/over_start", "gain/over_checkpoint")
    assert [found[name] for name in names] == [0.6, 1, 0.5, pytest.approx(0.2), 0.25]
    assert {len(server.points(server.parent(), name)) for name in names} == {1}


def test_values_that_are_not_finite_are_left_out(server: Server) -> None:
    broken = make_epoch(1, 0.2, loss=math.inf, iou={"fence": 0.3, "car": math.nan})
    server.reconcile(FakeLedger(make_trial(0, "fail", epochs=[broken])))
    metrics = server.runs("trial")[0].data.metrics
    assert {"train/loss", "val/iou/car"}.isdisjoint(metrics)
    assert metrics["val/iou/fence"] == 0.3


def test_repeating_and_restarting_double_no_run_and_no_point(server: Server) -> None:
    ledger = FakeLedger(make_trial(0), make_trial(1, "running", done=2))
    for _ in range(2):
        server.reconcile(ledger)
        assert server.track(ledger).stop(30)
    assert [len(server.points(run, "val/miou")) for run in server.runs("trial")] == [3, 2]
    assert server.points(server.parent(), "val/miou") == [(1, pytest.approx(0.3))]


def test_epochs_that_an_outage_missed_are_filled_in(server: Server) -> None:
    whole = make_trial(0)
    server.reconcile(FakeLedger(replace(whole, epochs=[whole.epochs[0], whole.epochs[2]])))
    server.reconcile(FakeLedger(whole))
    assert sorted(server.points(server.runs("trial")[0], "train/loss")) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_epoch_of_which_the_server_has_stored_only_a_part_is_completed(server: Server) -> None:
    from mlflow.entities import Metric

    server.reconcile(FakeLedger(make_trial(0, "running", done=0)))
    (run,) = server.runs("trial")
    rows = epoch_points(make_trial(0, "running", done=1))[0].rows()
    server.client.log_batch(run.info.run_id, [Metric(*row) for row in rows[: len(rows) // 2]])
    server.reconcile(FakeLedger(make_trial(0, "running", done=1)))
    assert {key: len(server.points(run, key)) for key, *_ in rows} == {key: 1 for key, *_ in rows}


@pytest.mark.parametrize(
    ("state", "status", "tag"),
    [
        ("complete", "FINISHED", None),
        ("fail", "FAILED", ("fgseg.reason", "loss was NaN in epoch 2")),
        ("pruned", "KILLED", ("fgseg.pruned", "epoch 2")),
    ],
)
def test_a_trial_ends_in_its_own_state(server: Server, state: str, status: str, tag: tuple[str, str] | None) -> None:
    server.reconcile(FakeLedger(make_trial(0, state, done=2)))
    (run,) = server.runs("trial")
    assert (run.info.status, run.info.start_time, run.info.end_time) == (status, START * 1000, START * 1000 + 50_000)
    assert tag is None or run.data.tags[tag[0]] == tag[1]
    assert "fgseg.interrupted" not in run.data.tags


def test_every_state_of_the_ledger_has_a_status() -> None:
    assert STATUS.keys() == set(State)


def test_an_interrupted_study_is_killed_and_reopened_when_it_goes_on(server: Server) -> None:
    ledger = FakeLedger(make_trial(0), make_trial(1, "running", done=1))
    assert server.track(ledger).stop(30, interrupted=True)
    for run in (server.parent(), server.runs("trial")[1]):
        assert (run.info.status, run.data.tags["fgseg.interrupted"]) == ("KILLED", "true")
    server.reconcile(ledger, phase="running")
    for run in (server.parent(), server.runs("trial")[1]):
        assert run.info.status == "RUNNING"
        assert "fgseg.interrupted" not in run.data.tags
    ledger.put(make_trial(1))
    assert server.track(ledger).stop(30)
    assert {run.info.status for run in [server.parent(), *server.runs("trial")]} == {"FINISHED"}


def test_a_study_left_with_open_trials_is_never_finished(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0, "running", done=1)), phase="finished")
    assert {run.info.status for run in [server.parent(), *server.runs("trial")]} == {"KILLED"}


def test_the_parent_shows_the_best_trial_as_trials_finish(server: Server) -> None:
    ledger = FakeLedger(make_trial(0), make_trial(1, "running"))
    server.reconcile(ledger, phase="running")
    ledger.put(make_trial(1))
    server.reconcile(ledger, phase="running")
    parent = server.parent()
    assert server.points(parent, "val/miou") == [(1, pytest.approx(0.30)), (2, pytest.approx(0.31))]
    assert parent.data.tags["fgseg.best_trial"] == "1"
    assert {"val/miou"} | {f"val/iou/{c.key}" for c in FOREGROUND} <= parent.data.metrics.keys()
    assert not any(name.startswith("train/") for name in parent.data.metrics)


def test_the_parent_shows_the_selected_epoch_of_the_best_trial(server: Server) -> None:
    record = make_trial(0, epochs=[make_epoch(1, 0.5), make_epoch(2, 0.2)], value=0.5, selected=1)
    server.reconcile(FakeLedger(record))
    assert server.parent().data.metrics["val/miou"] == 0.5


def test_settings_and_report_are_kept_with_the_study(server: Server, tmp_path: Path) -> None:
    tracker = server.track(FakeLedger(make_trial(0)))
    tracker.publish("report/report.md", b"# report")
    assert tracker.stop(30)
    kept = {path.name: path for path in (tmp_path / "mlartifacts").rglob("*.*")}
    assert kept.keys() == {"settings.yaml", "report.md"}
    assert kept["report.md"].parent.name == "report" and kept["report.md"].read_bytes() == b"# report"
    assert kept["settings.yaml"].read_text().splitlines()[:2] == ["train:", "  lr: 6.0e-05"]


def test_a_tracked_study_is_written_while_it_runs_and_leaves_the_current_folder_empty(server: Server) -> None:
    ledger = FakeLedger()
    tracker = server.track(ledger)
    for epochs in range(4):
        ledger.put(make_trial(0, "running", epochs))
        tracker.notify(0)
    deadline = time.monotonic() + 20
    while not [r for r in tracked(server) if r.data.metrics.get("val/miou", 0) > 0.29] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.runs("trial")[0].info.status == "RUNNING"
    ledger.put(make_trial(0))
    tracker.notify(0)
    assert tracker.stop(30)
    assert server.runs("trial")[0].info.status == "FINISHED"
    assert list(Path.cwd().iterdir()) == []


def tracked(server: Server) -> list[Any]:
    return server.runs("trial") if server.client.get_experiment_by_name("quickstart") else []


def test_a_second_run_of_one_trial_is_deleted(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0)))
    first = server.runs("trial")[0]
    server.client.create_run(first.info.experiment_id, int(START * 1000) + 1, dict(first.data.tags), "bas/000")
    server.reconcile(FakeLedger(make_trial(0)))
    assert [run.info.run_id for run in server.runs("trial")] == [first.info.run_id]


def test_a_deleted_experiment_is_brought_back(server: Server) -> None:
    server.reconcile(FakeLedger(make_trial(0)))
    server.client.delete_experiment(server.client.get_experiment_by_name("quickstart").experiment_id)
    server.reconcile(FakeLedger(make_trial(0), make_trial(1)))
    assert server.client.get_experiment_by_name("quickstart").lifecycle_stage == "active"
    assert len(server.runs("trial")) == 2


def test_studies_of_one_name_on_one_server_are_told_apart_by_their_uid(server: Server) -> None:
    for uid in ("a", "b"):
        server.metadata = replace(server.metadata, uid=uid)
        server.reconcile(FakeLedger(make_trial(0)))
    assert sorted(run.data.tags["fgseg.uid"] for run in server.runs("trial")) == ["a", "b"]


def test_importing_the_tracking_module_does_not_import_mlflow() -> None:
    code = "import sys, search.tracking.tracker; sys.exit('mlflow' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_changed_batch_is_a_tag_of_its_trial():
    record = make_trial(3, "running", done=0, overrides={"train.batch_size": 1})
    assert trial_tags(METADATA, record, "parent")["fgseg.changed_batch"] == '{"train.batch_size": 1}'


def store_untrained(server: Server, **changes: Any) -> UntrainedResult:
    """Write the result of the untrained checkpoint into the study's folder."""
    result = make_untrained(**{"data": server.metadata.identity["data"]} | changes)
    open_store(server.location.folder).put(UNTRAINED, json.dumps(result.to_json()).encode())
    return result


def test_untrained_checkpoint_is_a_run_under_the_study_s_own(server: Server) -> None:
    result = store_untrained(server)
    for _ in range(2):
        server.reconcile(FakeLedger(make_trial(0)))
    (run,) = server.runs("checkpoint")
    assert (run.info.run_name, run.info.status) == ("bas/checkpoint", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == server.parent().info.run_id
    assert run.data.metrics == result.metrics() and "val/iou/traffic_light" not in run.data.metrics
    assert server.points(run, "val/miou") == [(0, result.miou)]
    assert run.data.params["model.name"] == "small"


def test_checkpoint_that_was_evaluated_again_has_a_new_run(server: Server) -> None:
    ledger = FakeLedger(make_trial(0))
    store_untrained(server)
    server.reconcile(ledger)
    store_untrained(server, miou=0.5, seconds=START + 1)
    server.reconcile(ledger)
    (run,) = server.runs("checkpoint")
    assert server.points(run, "val/miou") == [(0, 0.5)]


def test_result_of_other_data_is_not_shown(server: Server) -> None:
    store_untrained(server, data="beef")
    server.reconcile(FakeLedger(make_trial(0)))
    assert server.runs("checkpoint") == []
