"""Log files to a run of MLflow: reports, and the overlays of a trial."""

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fgseg.storage.store import Store
from fgseg.visual.overlays import read_overlays

OVERLAY_COUNT = "fgseg.overlays"
"""Tag with the number of overlays of a trial's run.  Set after they are logged, so that none is logged twice."""


def log_bytes(client: Any, run_id: str, name: str, data: bytes) -> None:
    """Log bytes as a file of a run, e.g. `report/report.html`.

    MLflow 3's `log_artifact` accepts local files only, hence the temporary folder.
    """
    location = PurePosixPath(name)
    with TemporaryDirectory(prefix="fgsearch-") as folder:
        path = Path(folder, location.name)
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), None if len(location.parts) == 1 else str(location.parent))


def log_overlays(client: Any, run_id: str, store: Store) -> int:
    """Log the overlays in a trial's folder to its run, as `overlays/<frame>.png`; returns their number."""
    overlays = read_overlays(store)
    for name, data in overlays.items():
        log_bytes(client, run_id, f"overlays/{name}", data)
    return len(overlays)
