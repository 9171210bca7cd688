"""What goes with a run in MLflow: the report with the study, overlays with each trial, the data that it reads."""

import json
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fgseg.overlay_files import read_overlays
from fgseg.store import join, open_store
from search.projection import Data

SHOWN = "fgseg.overlays"
"""Tag of a trial's run: how many overlays it has.  Set after they are written, so that none is written twice."""


def log_bytes(client: Any, run_id: str, name: str, data: bytes) -> None:
    """Keep a file with a run under a name such as `report/report.html`; MLflow takes files from a folder only."""
    place = PurePosixPath(name)
    with TemporaryDirectory(prefix="fgsearch-") as folder:
        path = Path(folder, place.name)
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), None if len(place.parts) == 1 else str(place.parent))


def log_overlays(client: Any, run_id: str, trials: str, number: int) -> int:
    """Keep a trial's overlays with its run, as `overlays/<frame>.png`; returns how many there are.

    Args:
        client: MLflow's.
        run_id: of the trial's run.
        trials: address of the folder of all trials.
        number: of the trial.
    """
    overlays = read_overlays(open_store(join(trials, str(number))))
    for name, data in overlays.items():
        log_bytes(client, run_id, f"overlays/{name}", data)
    return len(overlays)


def log_data(client: Any, run_id: str, data: Data) -> None:
    """Name the data that a run reads, as a dataset of MLflow's; repeating it changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps(data.settings, sort_keys=True)
    dataset = Dataset(data.name, data.digest, source_type="fgsearch", source=source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train, val")])])
