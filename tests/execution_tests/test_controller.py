"""What a driver does where another one is at work on the same study."""

from pathlib import Path

import pytest
from sqlalchemy import update
from waiting import wait_for

from fgseg.config.errors import ConfigError
from search.cli.signals import Signals
from search.execution import controller as driver
from search.ledger.ledger import Ledger
from search.ledger.lock import LOCKS
from search.study.plan import Plan, make_plan
from search.tracking.run_reader import read_runs


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study whose settings and data have been found right."""
    plan = make_plan("bas", "configs/quickstart.yaml", {}, {"storage": str(tmp_path / "runs")}, "s")
    monkeypatch.setattr(driver, "preflight", lambda plan, console: plan.identity | {"data": "f00d"})
    return plan


def test_study_that_another_driver_began_meanwhile_with_other_settings_is_refused(plan: Plan):
    Path(plan.folder).mkdir(parents=True)
    ledger = Ledger.create(plan.ledger_url, "s")
    ledger.record_run(plan.identity | {"data": "beef"}, {}, 1)
    with pytest.raises(ConfigError, match=r"study s was begun with something else \(data: 'beef' there, 'f00d' now\)"):
        driver.run_study(plan, Signals())
    assert ledger.identity["data"] == "beef"


@pytest.mark.slow
def test_driver_that_lost_the_study_leaves_mlflow_report_and_model_to_the_other(plan: Plan, monkeypatch, capsys):
    def run_until_it_is_lost(plan: Plan, ledger: Ledger, watch: driver.Watch, outlets: driver.Outlets) -> int:
        wait_for(lambda: read_runs(plan.tracking_uri, "s", ledger.uid))
        with ledger._storage._backend.engine.begin() as connection:
            connection.execute(update(LOCKS).values(token="theirs"))
        wait_for(lambda: not watch.lock.is_held())  # its next heartbeat tells, within 5 s
        return driver.FAULT

    monkeypatch.setattr(driver, "run_remaining_trials", run_until_it_is_lost)
    assert driver.run_study(plan, Signals()) == driver.FAULT
    (parent,) = read_runs(plan.tracking_uri, "s", Ledger(plan.ledger_url, "s").uid)
    assert (parent.status, parent.tags.get("fgseg.interrupted")) == ("RUNNING", None)
    assert not (Path(plan.folder) / "report").exists() and not (Path(plan.folder) / "model").exists()
    assert capsys.readouterr().out == ""
