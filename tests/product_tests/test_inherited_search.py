"""A whole search from a checkpoint whose head is inherited."""

from pathlib import Path

import pytest
from small_checkpoint import save_checkpoint

from search.audit.trials import audit
from search.tracking.run_reader import CHECKPOINT, read_runs

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SMALL = ["data.height=64", "data.width=128", "data.train=8", "data.val=4", "data.test=4", "train.epochs=2"]


def test_search_shows_the_untrained_checkpoint_in_table_report_and_mlflow(search, tmp_path: Path):
    sets = [part for s in (*SMALL, f"model.name={save_checkpoint(tmp_path / 'weights')}") for part in ("--set", s)]
    storage = tmp_path / "runs"
    finished = search(storage, "--space", "baseline", "--study", "s", "--trials", "2", "--no-register", *sets)
    assert finished.code == 0, finished.output
    assert all(text in finished.output for text in ("checkpoint, ┃", "untrained ┃", "over ┃", "checkpoint ┃"))
    assert audit(storage, "s", trials=2) == []
    (run,) = (run for run in read_runs(f"sqlite:///{storage / 'mlflow.db'}", "s", "") if run.number == CHECKPOINT)
    assert [step for step, _ in run.points["val/miou"]] == [0]
    assert "over the untrained checkpoint" in (storage / "s" / "report" / "report.html").read_text()
