"""What a driver does where another one is at work on the same study, and after a late signal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace

import pytest
from rich.console import Console
from sqlalchemy import update
from waiting import wait_for

from fgseg.cli import FAULT, TERMINATED
from fgseg.config.errors import ConfigError
from fgseg.storage.store import LocalStore
from search.cli.signals import Signals
from search.cluster import ray_cluster
from search.execution import controller, ray_tune
from search.execution.stop_reason import BUDGET, LOCK_LOST, StopReason
from search.execution.strategies import SearchStrategy
from search.execution.views import StudyViews
from search.ledger.ledger import Ledger
from search.ledger.study_metadata import StudyMetadata
from search.ledger.tables import STUDIES
from search.study.plan import Plan, make_plan
from search.study.resources import Resources
from search.tracking.run_reader import read_runs


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study whose settings and data have been found right."""
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {"storage": str(tmp_path / "runs")}, "s")
    monkeypatch.setattr(controller, "preflight", lambda plan, console: plan.identity | {"data": "f00d"})
    monkeypatch.setattr(controller, "print_notes", lambda plan, console: None)  # decodes all frames
    return plan


def test_study_that_another_driver_began_meanwhile_with_other_settings_is_refused(plan: Plan):
    Path(plan.location.folder).mkdir(parents=True)
    ledger = Ledger.create(plan.location.ledger_url, "s")
    ledger.record_run(StudyMetadata(identity=plan.identity | {"data": "beef"}, budget=1))
    with pytest.raises(
        ConfigError,
        match=r"study s was started with other settings, data or version \(data: 'beef' there, 'f00d' now\)",
    ):
        controller.run_study(plan, Signals())
    assert ledger.metadata.identity["data"] == "beef"


def test_study_begun_before_a_setting_existed_continues_while_it_has_its_default(plan: Plan, tmp_path: Path):
    Path(plan.location.folder).mkdir(parents=True)
    identity = plan.identity | {"data": "f00d"}
    settings = {key: value for key, value in identity["settings"].items() if key not in ("train.ema", "loss.edge")}
    ledger = Ledger.create(plan.location.ledger_url, "s")
    ledger.record_run(StudyMetadata(settings=settings, identity=identity | {"settings": settings}, budget=1))
    with controller.open_for_writing(SearchStrategy(plan), identity, Signals()) as opened:
        assert opened.metadata.changes == ()
        assert opened.metadata.settings["train.ema"] == 0
    other = make_plan("bas", "configs/quickstart.yaml", {"train.ema": 0.9}, {"storage": str(tmp_path / "runs")}, "s")
    with pytest.raises(ConfigError, match=r"\(settings\.train\.ema: 0\.0 there, 0\.9 now\)"):
        controller.run_study(other, Signals())


def test_temporary_file_of_a_driver_that_was_killed_is_deleted(plan: Plan):
    leftover = Path(plan.location.folder, f"write-test.0123{LocalStore.SUFFIX}")
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    with controller.open_for_writing(SearchStrategy(plan), plan.identity | {"data": "f00d"}, Signals()):
        assert not leftover.exists()


@pytest.mark.slow
def test_driver_that_lost_the_study_leaves_mlflow_report_and_model_to_the_other(plan: Plan, monkeypatch, capsys):
    def run_until_it_is_lost(plan: Plan, ledger: Ledger, views: StudyViews, signals: Signals) -> StopReason:
        wait_for(lambda: read_runs(plan.location.tracking_uri, "s", ledger.metadata.uid))
        with ledger._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        wait_for(lambda: not ledger.is_locked)  # its next heartbeat tells, within 5 s
        return LOCK_LOST

    monkeypatch.setattr(controller, "run_remaining_trials", run_until_it_is_lost)
    assert controller.run_study(plan, Signals()) == FAULT
    (parent,) = read_runs(plan.location.tracking_uri, "s", Ledger(plan.location.ledger_url, "s").metadata.uid)
    assert (parent.status, parent.tags.get("fgseg.interrupted")) == ("RUNNING", None)
    assert not (Path(plan.location.folder) / "report").exists() and not (Path(plan.location.folder) / "model").exists()
    assert capsys.readouterr().out == ""


def test_signal_while_ray_shuts_down_ends_the_run_like_one_before(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    signals = Signals()
    signals.gentle = True

    @contextmanager
    def cluster(*arguments: object) -> Iterator[Resources]:
        yield Resources(1, 0, 1, 1)
        signals.handle(SIGTERM, None)

    monkeypatch.setattr(ray_cluster, "cluster", cluster)
    monkeypatch.setattr(ray_cluster, "NodeMonitor", lambda resources: None)
    monkeypatch.setattr(ray_tune, "run_trials", lambda *arguments, **options: BUDGET)
    strategy = SearchStrategy(plan)
    with controller.open_for_writing(strategy, {"data": "f00d"}, Signals()) as ledger:
        views = SimpleNamespace(console=Console(), listeners=[], precedence=None, print_line=print)
        assert controller.run_remaining_trials(plan, ledger, views, signals).exit_code == TERMINATED


def test_driver_that_loses_the_study_while_ray_starts_ends_with_one_line(plan: Plan, monkeypatch, capsys):
    @contextmanager
    def cluster(*arguments: object) -> Iterator[Resources]:
        with Ledger(plan.location.ledger_url, plan.study)._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        yield Resources(1, 0, 1, 1)

    views = SimpleNamespace(console=Console(), listeners=[], close=lambda reason, signals: None)
    monkeypatch.setattr(controller, "StudyViews", lambda strategy, ledger, console: views)
    monkeypatch.setattr(ray_cluster, "cluster", cluster)
    assert controller.run_study(plan, Signals()) == FAULT
    assert capsys.readouterr().err == "error: study s: another driver has taken the study over\n"
