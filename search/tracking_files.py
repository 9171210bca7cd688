"""Files beside a run in MLflow: the report with the study, overlays with each trial."""

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fgseg.storage.store import join, open_store
from fgseg.visual.overlays import read_overlays

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
