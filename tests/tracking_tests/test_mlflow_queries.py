"""The queries of mlflow/README.md, run as they stand there against a real store."""

import re
from pathlib import Path

import pytest
from builders import make_epoch, make_trial
from fake_ledger import FakeLedger

from search.ledger.study_metadata import StudyMetadata
from search.study.location import StudyLocation
from search.tracking.client import load_client
from search.tracking.sync import reconcile

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "mlflow" / "README.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)[0].splitlines()
FOUND = {
    "tags.fgseg.kind = 'trial'": {"bas_cp/000", "bas_cp/001", "bas_cp/002"},
    "tags.fgseg.space = 'bas_cp' and metrics.`selected/val/miou` > 0.5": {"bas_cp/001", "quickstart-bas_cp"},
    "tags.fgseg.study = 'quickstart-bas_cp' and attributes.status = 'FINISHED'": {
        "bas_cp/000",
        "bas_cp/001",
        "quickstart-bas_cp",
    },
    "metrics.`selected/val/iou/pole` > 0.1 and metrics.`selected/val/iou/traffic_light` > 0.1": {
        "bas_cp/000",
        "bas_cp/001",
        "quickstart-bas_cp",
    },
    "params.train.lr = '0.005' and tags.fgseg.kind = 'trial'": {"bas_cp/000", "bas_cp/001", "bas_cp/002"},
    "tags.fgseg.reason LIKE '%memory%'": {"bas_cp/002"},
}
"""What each query finds among the runs of `uri`."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one study of three trials: a weak one, a good one, and one that ran out of memory."""
    folder = tmp_path_factory.mktemp("queries")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    good = make_trial(1, epochs=[make_epoch(1, 0.6)], value=0.6, selected=1)
    broken = make_trial(2, "fail", reason="out of memory")
    settings = {"train.lr": 5e-3, "train.seed": 42}
    metadata = StudyMetadata("quickstart-bas_cp", "bas_cp", "BAS + copy-paste", "quickstart", settings)
    reconcile(FakeLedger(make_trial(0), good, broken), StudyLocation(str(folder), metadata.study, uri), metadata)
    return uri


@pytest.mark.parametrize("query", QUERIES)
def test_query_of_the_readme_finds_what_it_says(query: str, uri: str):
    client = load_client()(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    assert {run.info.run_name for run in client.search_runs([experiment], query)} == FOUND[query]


def test_python_of_the_readme_lists_the_best_trials(uri: str, capsys: pytest.CaptureFixture[str]):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    exec(code.replace("http://127.0.0.1:5000", uri), {})
    assert capsys.readouterr().out.startswith("[('bas_cp/001', 0.6), ('bas_cp/000', 0.3")
