"""MLflow's model registry: a version per best model, logged by mlflow.transformers.

Reached through `register`, which starts this file as a process of its own: importing torch, Transformers and MLflow's
flavour takes seconds, sets global state, prints what nobody needs, and can be ended at any moment.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.storage.store import local_files
from search.study.location import public_address
from search.tracking.client import ENVIRONMENT, TrackingError, load_client, open_client, pages
from search.tracking.run_reader import find_runs
from search.tracking.run_schema import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("torch", "transformers", "pillow")
"""What the model needs, in the versions that are here; without this list MLflow would find out by loading it."""
ALIAS = "best"
REGISTER_S = 120.0
"""How long a model may take; it is about ten seconds on two idle cores, most of them imports."""
POLL_S = 0.1


def register(
    uri: str, origin: dict[str, Any], folder: str, limit_s: float, stop: Callable[[], bool] = lambda: False
) -> int:
    """Log an exported model on its study's run and register it under the study's name, unless it is registered.

    Args:
        uri: address of MLflow.
        origin: what the folder says that it holds (`search.export.describe`).
        folder: the address of the exported model.
        limit_s: seconds after which it is given up.
        stop: asked several times a second; it is given up at once when this says so.

    Returns:
        The version in the registry.

    Raises:
        TrackingError: MLflow could not be reached, refused, or took too long; calling again mends it.
    """
    where = f"MLflow at {public_address(uri)}"
    with subprocess.Popen(
        [sys.executable, "-m", "search.tracking.model_registry", str(int(limit_s) + 1)],
        env=ENVIRONMENT | os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver, which ends this
        text=True,
    ) as child:
        try:
            assert child.stdin and child.stdout
            # Not on the command line, which every user of the machine can read.
            child.stdin.write(json.dumps({"uri": uri, "origin": origin, "folder": folder}))
            child.stdin.close()
            wait(child, where, limit_s, stop)
            answer = json.loads(child.stdout.read().strip().rpartition("\n")[2] or "{}")
        finally:
            child.kill()
    if "version" not in answer:
        raise TrackingError(f"{where}: the model was not registered ({answer.get('error', 'the process died')})")
    return int(answer["version"])


def wait(child: "subprocess.Popen[str]", where: str, limit_s: float, stop: Callable[[], bool]) -> None:
    """Wait for the end of a process; raises TrackingError when it takes too long or `stop` says so."""
    end = time.monotonic() + limit_s
    while child.poll() is None:
        if stop():
            raise TrackingError(f"{where}: the model was not registered (interrupted)")
        if time.monotonic() > end:
            raise TrackingError(f"{where}: the model was not registered within {limit_s:g} s")
        time.sleep(POLL_S)


def carry_out(uri: str, origin: dict[str, Any], folder: str) -> int:
    """What `register` describes, in this process; raises whatever MLflow or Transformers raise."""
    client: MlflowClient = load_client()(tracking_uri=uri)
    name = origin["study"]
    tags = {f"fgseg.{key}": str(origin[key]) for key in ("uid", "trial", "epoch", "weights")}
    number = registered_version(client, name, tags)
    if not number:
        with local_files(folder) as files:
            number = log(client, uri, name, tags, str(files))
    client.set_registered_model_alias(name, ALIAS, str(number))
    return number


def registered_version(client: "MlflowClient", name: str, tags: dict[str, str]) -> int | None:
    """The newest version with these tags, or None."""
    own = own_versions(client, name, tags["fgseg.uid"])
    return next((int(found.version) for found in own if tags.items() <= found.tags.items()), None)


def own_versions(client: Any, name: str, uid: str) -> list[Any]:
    """The versions of a registered model that come from one study, newest first."""
    versions = pages(client.search_model_versions, f"name = '{name}'")
    return sorted((v for v in versions if v.tags.get("fgseg.uid") == uid), key=lambda v: -int(v.version))


def model_id(found: Any) -> str:
    """Which logged model a version of the registry is (its own `model_id` is empty in a database)."""
    return str(found.source).removeprefix("models:/")


def log(client: "MlflowClient", uri: str, name: str, tags: dict[str, str], folder: str) -> int:
    """Log the model on the study's run, in its experiment, and register it; returns the version."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from transformers import pipeline

    runs = find_runs(client, name, tags["fgseg.uid"])
    parent = next((run for run in runs if run.data.tags.get("fgseg.kind") == "study"), None)
    if parent is None:
        raise LookupError("it holds no run of this study; python -m search.sync writes it")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=parent.info.experiment_id)
    steps = [metric.step for metric in client.get_metric_history(parent.info.run_id, "val/miou")]
    logged = mlflow.transformers.log_model(
        pipeline("image-segmentation", model=folder),
        name="model",
        task="image-segmentation",
        model_card=ModelCard((Path(folder) / "README.md").read_text(encoding="utf-8")),
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        registered_model_name=name,
        run_id=parent.info.run_id,
        step=max(steps, default=0),
        tags=tags,
    )
    return int(logged.registered_model_version)


def delete_versions(uri: str, study: str, uid: str) -> None:
    """Delete the registered versions of a study, and its name in the registry if none of another study is left.

    Raises:
        TrackingError: the server could not be reached or refused a request; calling again deletes the rest.
    """
    with open_client(uri) as client:
        if client is None or not list(pages(client.search_registered_models, f"name = '{study}'")):
            return
        for found in own_versions(client, study, uid):
            client.delete_model_version(study, found.version)
            client.delete_logged_model(model_id(found))
        if not list(pages(client.search_model_versions, f"name = '{study}'")):
            client.delete_registered_model(study)


def main() -> int:
    """The process that `register` starts: a job on standard input, the version or the error as the last line out."""
    signal.alarm(int(sys.argv[1]))  # nobody waits any longer, should the driver have been killed
    try:
        answer: dict[str, Any] = {"version": carry_out(**json.load(sys.stdin))}
    except Exception as error:  # whatever it is, it must reach the driver as one line
        answer = {"error": explain(error)}
    print(json.dumps(answer), flush=True)
    return 0 if "version" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
