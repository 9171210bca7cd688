"""MLflow's model registry: one version per best model, logged by mlflow.transformers.

`register` runs `register_here` in a child process: importing torch, Transformers and MLflow's flavor takes seconds,
sets global state and prints progress bars, and a child can be killed at any moment.
"""

import os
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.storage.store import local_files
from search.study.child_process import ChildError, ChildProcess
from search.study.location import public_address
from search.tracking.client import ENVIRONMENT, TrackingError, load_client, open_client, pages
from search.tracking.run_reader import find_runs
from search.tracking.run_schema import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("torch", "transformers", "pillow")
"""Packages that the model needs, logged with their installed versions; without this list MLflow 3 loads the model to
infer them."""
ALIAS = "best"
"""Alias of the newest version in the registry."""
REGISTER_S = 120.0
"""Seconds until a registration is cancelled; it takes about 10 s on two idle cores, most of them for imports."""


def register(
    uri: str, origin: dict[str, Any], folder: str, limit_s: float, stop: Callable[[], bool] = lambda: False
) -> int:
    """Log an exported model on its study's run and register it under the study's name, unless registered already.

    Args:
        uri: address of MLflow.
        origin: study, uid, trial, epoch and weights of the model (`search.export.model.model_origin`).
        folder: the address of the exported model.
        limit_s: seconds until the registration is cancelled.
        stop: called several times a second; True cancels the registration.

    Returns:
        The version in the registry.

    Raises:
        TrackingError: MLflow could not be reached, refused, or took too long; the call may be repeated.
    """
    own = {key: value for key, value in ENVIRONMENT.items() if key not in os.environ} | {"HF_HUB_OFFLINE": "1"}
    try:
        with ChildProcess(send_version, uri, origin, folder, environment=own) as child:
            return int(child.receive(limit_s, stop))
    except ChildError as error:
        raise TrackingError(f"MLflow at {public_address(uri)}: the model was not registered ({error})") from None


def send_version(connection: Connection, uri: str, origin: dict[str, Any], folder: str) -> None:
    """Run in the child: register the model, then send its version."""
    try:
        connection.send(register_here(uri, origin, folder))
    except Exception as error:  # of MLflow, Transformers or the storage
        raise ChildError(explain(error)) from None


def register_here(uri: str, origin: dict[str, Any], folder: str) -> int:
    """Register the model in this process, see `register`; raises the errors of MLflow and Transformers."""
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
    """Return the newest version with these tags, or None."""
    own = own_versions(client, name, tags["fgseg.uid"])
    return next((int(found.version) for found in own if tags.items() <= found.tags.items()), None)


def own_versions(client: Any, name: str, uid: str) -> list[Any]:
    """Return the versions of a registered model that come from one study, newest first."""
    versions = pages(client.search_model_versions, f"name = '{name}'")
    return sorted((v for v in versions if v.tags.get("fgseg.uid") == uid), key=lambda v: -int(v.version))


def model_id(found: Any) -> str:
    """Return the ID of the logged model of a registered version; MLflow 3's `model_id` is empty with a database."""
    return str(found.source).removeprefix("models:/")


def log(client: "MlflowClient", uri: str, name: str, tags: dict[str, str], folder: str) -> int:
    """Log the model on the study's parent run, and register it; returns the version."""
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
